"""The supervisor of one workspace: pulls, starts, waits, serves, stops, and updates the state file at each step.

Phases change only by the table in `weightyard.up.phases`. Signals are recorded and checked between waits; during a pull
they raise, so that Ctrl-C needn't wait for a chunk. Independent of the CLI.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from modelimage.errors import WeightyardError
from weightyard.console import Console
from weightyard.exits import BUG, exit_code
from weightyard.options import absolute_image
from weightyard.up import inference_server as servers
from weightyard.up.agent_cache import AgentCache, Cached
from weightyard.up.engine_program import find_program
from weightyard.up.inference_server import Server, Stopped
from weightyard.up.phases import Event, Phase
from weightyard.up.process import own_identity
from weightyard.up.serve_plan import (
    Target,
    check_neighbours,
    choose,
    launch_plan,
    plan_before_pull,
)
from weightyard.up.start_times import StartTimes
from weightyard.up.state import State, WorkspaceDirectory, WorkspaceFailure
from workspace.fit import Fit
from workspace.hardware import Hardware
from workspace.schema import Workspace
from workspace.sources import image_of
from workspace.startup import StageName

STALL_SECONDS: Final = 300.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Run options. `python` is the server's interpreter; `grace` the seconds that it gets to stop.

    `start_timeout` is the number of seconds that a start may go without progress; None: the workspace's value.
    """

    root: Path
    host: str
    port: int | None
    python: Path
    grace: float
    hardware: Hardware
    start_timeout: float | None = None


class Interrupted(KeyboardInterrupt):
    """A signal arrived during a pull."""


class StopSignals:
    """Records signals. `requested` after the first, `hurried` after the second; `number` is the first's."""

    def __init__(self) -> None:
        self.count = 0
        self.number = signal.SIGINT
        self._raise = False

    def requested(self) -> bool:
        return self.count > 0

    def hurried(self) -> bool:
        return self.count > 1

    @contextmanager
    def noted(self) -> Iterator[StopSignals]:
        """Within the context, signals are recorded instead of ending the process. Main thread only."""
        before = {each: signal.signal(each, self._note) for each in _SIGNALS}
        try:
            yield self
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within the context, a signal raises Interrupted; so does one recorded before."""
        self._raise = True
        try:
            if self.requested():
                raise Interrupted
            yield
        finally:
            self._raise = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.count:
            self.number = signal.Signals(number)
        self.count += 1
        if self._raise:
            # Raised once only: a second signal during cleanup is only recorded, and ends the grace
            # period.
            self._raise = False
            raise Interrupted


class Supervisor:
    """Runs one workspace from pull to stop."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        options: RunOptions,
        cache: AgentCache,
        console: Console,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._workspace = workspace
        self._options = options
        self._cache = cache
        self._console = console
        self._environ = environ
        self._clock = clock
        self._directory = WorkspaceDirectory(options.root, workspace.name)
        self._leases: list[str] = []
        self._signals = StopSignals()

    def run(self, on_ready: Callable[[State], None]) -> signal.Signals:
        """Runs until a stop is requested; returns the signal. Raises the error that ended it."""
        with self._directory.locked(), self._signals.noted() as signals:
            self._state = self._first_state()
            self._times = StartTimes(self._clock, self._state.started_at)
            self._directory.write(self._state)
            server: Server | None = None
            try:
                # After the state of this one was written: of two that start at once, at least one
                # then sees the other's port.
                check_neighbours(self._options.root, self._state.name, self._state.port)
                server = self._start()
                self._serve(server, on_ready)
            except (Stopped, Interrupted):
                self._stop(server)
            except BaseException as error:
                self._fail(error, server)
                raise
            finally:
                # Even when the state can't be written: the server never outlives its supervisor.
                self._end(server)
            return signals.number

    def _first_state(self) -> State:
        spec, options = self._workspace.spec, self._options
        wanted = spec.runtime.port if options.port is None else options.port
        port = wanted or servers.free_port(options.host)
        servers.check_port(options.host, port)
        return State(
            name=self._workspace.name, phase=Phase.PULLING, supervisor=own_identity(),
            image=absolute_image(image_of(self._workspace)),
            started_at=self._clock(), host=servers.reachable(options.host), port=port,
            engine=spec.runtime.engine.value,
        )  # fmt: skip

    def _start(self) -> Server:
        # All that can be refused is, before a byte of the model moves.
        program = find_program(
            self._workspace.spec.runtime.engine, self._options.python,
            gpu=self._options.hardware.gpu is not None,
        )  # fmt: skip
        fit, cached = self._fetch()
        plan = launch_plan(
            self._workspace, fit, cached, self._fetch_adapters(), self._target, self._state.port
        )
        self._times.ended(StageName.VOLUME)
        self._move(
            Event.CACHED, variant=plan.variant, key=str(plan.key), served_name=plan.served_name,
            model_dir=str(cached.path), startup=self._times.document(),
        )  # fmt: skip
        server = servers.start(
            plan,
            program=program.command,
            host=self._options.host,
            log=self._directory.log,
            environ=self._environ,
        )
        # Written before waiting: `down` can then stop a server whose supervisor was killed.
        self._update(server=server.identity)
        try:
            # A second lease, held by the server: the first ends with the supervisor.
            with self._signals.raising():
                self._leases.append(self._cache.hold(cached, server.identity))
            with self._console.progress(f"starting {plan.engine.value}") as progress:
                server.wait_until_healthy(
                    describe=progress.describe,
                    stopped=self._signals.requested,
                    stall_seconds=self._stall_seconds(),
                )
        except BaseException:
            server.stop(grace=self._options.grace, hurry=self._signals.hurried)
            raise
        return server

    @property
    def _target(self) -> Target:
        options = self._options
        return Target(options.root, options.host, options.port, options.python, options.hardware)

    def _stall_seconds(self) -> float:
        """The seconds a start may go without progress: from the command line, else the workspace, else the default."""
        requested = self._options.start_timeout
        return requested or self._workspace.spec.runtime.startup_seconds or STALL_SECONDS

    def _fetch(self) -> tuple[Fit, Cached]:
        image, port = self._state.image, self._state.port
        with self._signals.raising():
            fit, record = choose(
                self._workspace, image, self._cache, self._options.hardware, may_pull=True
            )
            for reason in fit.reasons:
                self._console.say(f"variant not chosen: {reason}")
            plan_before_pull(self._workspace, fit, record, self._target, port)
            cached = self._cache.pull(image, fit.variant)
            self._times.parts = cached.parts
            # Leased by the supervisor until the server has its own lease, so that eviction can't
            # come between.
            self._leases.append(self._cache.hold(cached, self._state.supervisor))
        return fit, cached

    def _fetch_adapters(self) -> dict[str, Cached]:
        found = {}
        for adapter in self._workspace.spec.runtime.adapters:
            with self._signals.raising():
                cached = self._cache.pull(absolute_image(adapter.image), None)
                self._leases.append(self._cache.hold(cached, self._state.supervisor))
            found[adapter.name] = cached
        return found

    def _serve(self, server: Server, on_ready: Callable[[State], None]) -> None:
        self._times.ended(StageName.HEALTH)
        self._times.logged(server.log_times.ends)
        self._move(Event.HEALTHY, ready_at=self._clock(), startup=self._times.document())
        on_ready(self._state)
        while not self._signals.requested():
            if server.exited(servers.POLL):
                raise server.death()
            if self._times.look_due() and server.has_generated():
                self._times.ended(StageName.FIRST_TOKEN)
                self._update(startup=self._times.document())
        raise Stopped

    def _stop(self, server: Server | None) -> None:
        self._move(Event.ASKED_TO_STOP)
        self._console.say(f"stopping {self._workspace.name}")
        # The leases go only after the server: it maps the model's files.
        self._end(server)
        self._release()
        self._move(Event.GONE)

    def _fail(self, error: BaseException, server: Server | None) -> None:
        self._end(server)
        if isinstance(error, WeightyardError):
            failure = WorkspaceFailure(error.message, error.hint, exit_code(error))
        else:
            failure = WorkspaceFailure(f"{type(error).__name__}: {error}", None, BUG)
        # Recorded before the leases are released, which may fail as well.
        self._move(Event.BROKE, failure=failure)
        self._release()

    def _end(self, server: Server | None) -> None:
        if server is not None:
            server.stop(grace=self._options.grace, hurry=self._signals.hurried)

    def _release(self) -> None:
        for lease in self._leases:
            self._cache.release(lease)
        self._leases.clear()

    def _move(self, event: Event, **changes: Any) -> None:
        self._state = self._state.moved(event, **changes)
        self._directory.write(self._state)
        self._console.event("phase", workspace=self._state.name, phase=self._state.phase.value)

    def _update(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        self._directory.write(self._state)

"""A store with a real agent over it, and what must hold after any fault: `Site.prove`."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.api.control_client import AgentClient
from cache_agent.api.wire import CheckView, LeaseBody, PullBody, PullDone
from cache_agent.store.paths import StorePaths
from modelimage.errors import Busy, Unreachable, WeightyardError
from modelimage.path_rules import RECORD_NAME
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agent_process import LOOPBACK
from tests.faults.forks import Forks, Program
from tests.faults.orders import Orders, What
from tests.faults.promises import Promises
from tests.servers.process import child_environment, wait_until

# Little enough that one of the models has to go for another.
TIGHT = {"WEIGHTYARD_BUDGET": "800000"}
SETTINGS = {
    "WEIGHTYARD_SERVERS__REGISTRIES": LOOPBACK,
    "WEIGHTYARD_MIN_FREE": "0",
    "WEIGHTYARD_FETCH__STALL_SECONDS": "1",
    "WEIGHTYARD_TIERS__ORDER": "[registry]",
    "WEIGHTYARD_TIERS__HUB__ENDPOINT": "http://127.0.0.1:1",
    "WEIGHTYARD_DEBUG": "1",
}


@dataclass(frozen=True)
class Model:
    """A published model: its image, its key and its files."""

    image: str
    key: str
    files: Mapping[str, bytes]


@dataclass
class Site:
    """One store under `home`, the models that exist, and what its agent promised."""

    home: Path
    forks: Forks
    models: Sequence[Model]
    rng: random.Random
    settings: dict[str, str] = field(default_factory=dict)
    promises: Promises = field(default_factory=Promises)
    program: Program | None = None
    held: dict[str, int] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)  # models that aren't held, with a pin

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        self.root = self.home / "store"
        self.paths = StorePaths(self.root)
        self.orders = Orders(self.home / "orders", self.root)
        self._log_number = 0

    @property
    def client(self) -> AgentClient:
        return AgentClient(self.paths.socket)

    def run(self, *argv: str) -> Program:
        """Start a `weightyard` command over this store."""
        self._log_number += 1
        log = self.home / f"log-{self._log_number}"
        log.touch()
        environment = child_environment(self.home, **{**SETTINGS, **self.settings})
        command = ["--json", argv[0], "--root", str(self.root), *argv[1:]]
        return self.forks.start(command, log, environment, self.orders)

    def launch(self) -> Program:
        """Start the agent, which may end at once."""
        self.program = self.run("agent")
        return self.program

    def start(self) -> None:
        """Start the agent and wait until it answers."""
        program = self.launch()

        def ready() -> bool:
            return '"ready"' in program.log_text() or not program.is_running()

        wait_until(ready, what="ready agent")
        assert program.is_running(), f"the agent ended with {program.status}:\n{program.tail()}"

    def kill(self) -> None:
        assert self.program is not None
        self.program.signal(signal.SIGKILL)
        assert self.program.wait() == -signal.SIGKILL, self.program.tail()
        self.program = None

    def started(self) -> bool:
        """Wait until the agent that was launched is ready, or has ended; whether it runs."""
        program = self.program
        assert program is not None
        wait_until(
            lambda: '"ready"' in program.log_text() or not program.is_running(), what="start"
        )
        assert '"Bug"' not in program.log_text(), program.tail()
        if program.is_running():
            return True
        self.program = None
        return False

    def stop(self) -> None:
        """End the agent as a node does; it ends well."""
        if self.program is None:
            return
        self.program.signal(signal.SIGTERM)
        assert self.program.wait() == 0, f"ended with {self.program.status}:\n{self.program.tail()}"
        self.program = None

    def assert_alive(self) -> None:
        assert self.program is not None
        assert self.program.is_running(), (
            f"the agent ended with {self.program.status}:\n{self.program.tail()}"
        )

    def pull(self, number: int) -> PullDone:
        *_, last = self.client.pull(PullBody(image=self.models[number].image))
        assert isinstance(last, PullDone)
        return last

    def try_pull(self, number: int) -> WeightyardError | None:
        """Pull; a refusal with a reason is an answer too."""
        try:
            done = self.pull(number)
        except WeightyardError as error:
            return error
        assert done.key == self.models[number].key
        return None

    def lease(self, number: int, name: str) -> None:
        key = self.models[number].key
        with self.promises.lease(name, key):
            self.client.lease(LeaseBody(model=key, holder="manual:faults", id=name))

    def release(self, name: str) -> None:
        with self.promises.release(name):
            self.client.release(name)

    def pin(self, number: int, *, pinned: bool = True) -> None:
        key = self.models[number].key
        with self.promises.pin(key, pinned=pinned):
            self.client.pin(key, pinned=pinned)

    def promise_all(self) -> None:
        """A model with a lease, one with a pin, and one without either."""
        for number in range(len(self.models)):
            self.pull(number)
        self.lease(0, "lease")
        self.pin(1)

    def hold(self, number: int) -> None:
        """Use a model as a server does: a file of it is open in this process."""
        key = self.models[number].key
        path = self.root / "models" / key.removeprefix("sha256:") / "model.safetensors"
        self.held[key] = os.open(path, os.O_RDONLY)

    def assert_no_wrong_byte(self) -> None:
        """What of a model's files is visible is right, whether an agent runs or not."""
        for model in self.models:
            place = self.root / "models" / model.key.removeprefix("sha256:")
            for name, data in model.files.items():
                with suppress(OSError):
                    assert (place / name).read_bytes() == data, f"wrong bytes in {place / name}"

    def whole(self, number: int) -> None:
        """A model that was reported as pulled has all its files and no others."""
        model = self.models[number]
        place = self.root / "models" / model.key.removeprefix("sha256:")
        found = {str(p.relative_to(place)): p for p in place.rglob("*") if not p.is_dir()}
        assert set(found) == {*model.files, RECORD_NAME}
        assert not any(path.is_symlink() for path in found.values())
        assert all(found[name].read_bytes() == data for name, data in model.files.items())

    def prove(self, *, leases: bool = True) -> None:
        """After the fault is over, everything is right again, with a source and with `check --repair` at most.

        `leases`: whether the ledger, which alone knows those of nobody on this machine, is still the same.
        """
        self.orders.give(What.NOTHING)
        if self.program is None:
            self.start()
        self.assert_alive()
        view = self._repaired()
        left = [finding for finding in view.findings if not finding.repaired]
        assert left == [], f"not repaired: {left}"
        again = self.client.check().findings
        assert again == [], f"found again: {again}"
        self._promises_hold(leases)
        self._usable()
        self.assert_alive()
        self.stop()
        assert findings(self.root) == []

    def _repaired(self) -> CheckView:
        """`check --repair`, once the pulls that others began have ended."""

        def checked() -> CheckView | None:
            with suppress(Busy):
                return self.client.check(repair=True)
            return None

        return wait_until(checked, what="end of pulls")

    def _promises_hold(self, leases: bool) -> None:
        known = self.client.models()
        self.assert_no_wrong_byte()
        given = {lease.id: lease.model for lease in self.client.leases()}
        # One that was set aside, with its source damaged too, is pinned again with its next pull.
        self.awaited = self._marked() - {model.key for model in known}
        pins = {model.key for model in known if model.pinned} | self.awaited
        broken = self.promises.broken(given if leases else self.promises.leases, pins)
        assert broken == [], broken
        # Whoever knew of its lease, or was found to use the model.
        lost = set(self.held) - set(given.values())
        assert lost == set(), f"lost by a user: {lost}"

    def _usable(self) -> None:
        for lease in self.client.leases():
            self.client.release(lease.id)
        for model in self.client.models():
            if model.pinned:
                self.client.pin(model.key, pinned=False)
        for number in range(len(self.models)):
            self.pull(number)
            self.whole(number)
        pinned = {model.key for model in self.client.models() if model.pinned}
        assert pinned >= self.awaited, f"not pinned again: {self.awaited - pinned}"

    def _marked(self) -> set[str]:
        """The models with a mark of a pin on disk, whether they are held or not."""
        return {f"sha256:{each.name}" for each in self.paths.pins.iterdir()}

    def close(self) -> None:
        """End what runs, whatever state it is in, and remove everything."""
        for fd in self.held.values():
            os.close(fd)
        if self.program is not None:
            with suppress(Unreachable, ProcessLookupError):
                self.program.signal(signal.SIGKILL)
        for path in self.home.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(self.home)

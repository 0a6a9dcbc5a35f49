"""The maintenance thread: ends leases of dead holders, populates shared stores, scrubs the store.

Scrubbing and populating share one IO budget.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cache_agent.errors import Cancelled, Vanished
from cache_agent.fetch.repair import NodeRepairer
from cache_agent.observability.events import MaintenanceFailed
from cache_agent.sources.shared import SharedStore, populate_shared
from cache_agent.sources.throttle import Throttle
from cache_agent.store.roots import Roots
from cache_agent.store.store import Store
from modelimage.digest import Digest
from modelimage.errors import Fault, WeightyardError

DEFAULT_PERIOD: Final = 7 * 86400.0
DEFAULT_SCRUB_RATE: Final = 50e6
DEFAULT_INTERVAL: Final = 30.0
_MOST_DOUBLINGS: Final = 5  # of the interval, after unknown errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MaintenanceOptions:
    """Maintenance settings. `scrub_period`: seconds within which each file is read again; 0 turns scrubbing off.

    `scrub_rate`: the IO budget in bytes per second; `interval`: the seconds between two rounds.
    """

    scrub_period: float = DEFAULT_PERIOD
    scrub_rate: float = DEFAULT_SCRUB_RATE
    interval: float = DEFAULT_INTERVAL


class Maintenance:
    """Runs from `start` to `stop`. A failed round, whatever failed, is reported by `problem` and tried again."""

    def __init__(
        self,
        roots: Roots,
        repairer: NodeRepairer,
        options: MaintenanceOptions,
        shared: Callable[[], Sequence[SharedStore]] = lambda: (),
        relieve: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots, self._repairer, self._options = roots, repairer, options
        self._shared, self._relieve = shared, relieve
        self._written: dict[tuple[str, Path], set[Digest]] = {}  # by shared store and root
        self._throttle = Throttle(options.scrub_rate, monotonic)
        # An event and no flag: it ends the waits between rounds and within a throttled scrub.
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="maintenance", daemon=True)
        self._problem: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop soon, even in the middle of a file, and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def reconfigure(self, options: MaintenanceOptions) -> None:
        """Apply other periods and another IO budget."""
        self._options = options
        self._throttle.set_rate(options.scrub_rate)

    def problem(self) -> str | None:
        """Why maintenance fails, for readiness; None when it works."""
        if not self._thread.is_alive():
            return "the maintenance thread isn't running"
        return self._problem

    def round(self) -> int:
        """One round: expire leases, populate shared stores, scrub due files; returns the number of damaged files.

        A step that fails, whatever the error, doesn't stop the others: the first failure is raised at the end, an
        unknown one before one of this node before one of others. Raises Cancelled on `stop`.
        """
        damaged = 0
        problems: list[Exception] = []
        for step in self._steps():
            try:
                damaged += step()
            except Cancelled:
                # Cancelled is a WeightyardError too, but must end the round.
                raise
            except Exception as error:  # noqa: BLE001 - raised at the end
                problems.append(error)
        if problems:
            raise min(problems, key=_rank)
        return damaged

    def _steps(self) -> Iterator[Callable[[], int]]:
        # First: memory pressure can't wait for hours of scrubbing.
        yield self._relieve_memory
        for store in self._roots.stores:
            yield partial(self._expire, store)
            yield from (partial(self._populate_shared, place, store) for place in self._shared())
            if self._options.scrub_period > 0:
                yield partial(self._scrub, store)

    def _relieve_memory(self) -> int:
        self._relieve()
        return 0

    @staticmethod
    def _expire(store: Store) -> int:
        store.leases.expire()
        return 0

    def _scrub(self, store: Store) -> int:
        damaged = 0
        scrubber = store.files.scrubber(self._options.scrub_period, self._pause)
        for file in scrubber.due():
            damage = scrubber.scrub(file)
            if damage is not None:
                damaged += 1
                self._repairer.repair(store, damage.digest)
        return damaged

    def _populate_shared(self, place: SharedStore, store: Store) -> int:
        """Copy a store's files to a shared store that lacks them; each file is checked there only once."""
        # In memory only: after a restart each file is checked once more.
        written = self._written.setdefault((place.name, store.paths.root), set())
        present: set[Digest] = set()
        for model in store.models.all():
            for file in store.ledger.model_files(model.key):
                present.add(file.digest)
                if file.digest not in written:
                    # A model that was removed meanwhile needn't be copied.
                    with suppress(Vanished):
                        path = store.paths.file(file.digest)
                        populate_shared(place, file.digest, path, self._pause)
                        written.add(file.digest)
        # Without what was evicted.
        written &= present
        return 0

    def _main(self) -> None:
        bugs = 0  # rounds in a row with an unknown error
        while not self._stop.wait(self._options.interval * 2 ** min(bugs, _MOST_DOUBLINGS)):
            try:
                self.round()
                self._problem, bugs = None, 0
            except Cancelled:
                return
            except WeightyardError as error:
                # Only a failure of this node makes it unready; an unreachable bucket is merely reported.
                self._problem, bugs = error.message if error.fault is Fault.NODE else None, 0
                self._repairer.events.emit(MaintenanceFailed(error.message))
            except Exception as error:
                # A bug, or a file that nobody foresaw. Without this thread no lease would ever end again.
                bugs += 1
                self._problem = f"maintenance failed: {type(error).__name__}: {error}"
                logger.exception("maintenance failed with an unknown error")
                self._repairer.events.emit(MaintenanceFailed(self._problem))

    def _pause(self, count: int) -> None:
        # Waits on the stop event, so that a throttled scrub ends immediately.
        if self._stop.wait(self._throttle.take(count)):
            raise Cancelled("the agent is stopping")


def _rank(problem: Exception) -> int:
    """The order in which problems are told: an unknown error first, then this node's own."""
    if not isinstance(problem, WeightyardError):
        return 0
    return 1 if problem.fault is Fault.NODE else 2

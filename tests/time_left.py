"""A pytest plugin that says how far a run is and how long it will take.

The time is estimated from what each test took in the last run, kept in pytest's cache, and from how fast this run is
beside it: a busy machine shows as a longer time, not as a wrong one. Prints a line every half minute, at a test's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

CACHE: Final = "weightyard/durations"
INTERVAL: Final = 30.0  # seconds between lines
_UNKNOWN: Final = 1.0  # seconds of a test that never ran here, while no other says better


@dataclass
class Estimate:
    """What is left of a run: `known` are seconds by test, of the last run; `workers` tests run at a time."""

    known: Mapping[str, float]
    workers: int = 1
    left: set[str] = field(default_factory=set)
    total: int = 0
    _done_predicted: float = 0.0

    def begin(self, tests: Iterable[str]) -> None:
        """Takes the tests that will run."""
        self.left = set(tests)
        self.total = len(self.left)

    def finish(self, test: str) -> None:
        """Takes a test's end. One that isn't known to run, or ended before, changes nothing."""
        if test in self.left:
            self.left.remove(test)
            self._done_predicted += self._seconds(test)

    def remaining(self, elapsed: float) -> float:
        """Seconds left after `elapsed` ones: the predicted work, at the pace of the work that is done."""
        predicted = sum(map(self._seconds, self.left)) / self.workers
        done = self._done_predicted / self.workers
        if not predicted:
            return 0.0
        return predicted * (elapsed / done if done > 0 and elapsed > 0 else 1.0)

    def line(self, elapsed: float) -> str:
        """`1200 of 4800 tests, 25%, 12 min so far, 30 min left`."""
        done = self.total - len(self.left)
        percent = 100 * done // self.total if self.total else 100
        return (
            f"{done} of {self.total} tests, {percent}%, {_minutes(elapsed)} so far,"
            f" about {_minutes(self.remaining(elapsed))} left"
        )

    def _seconds(self, test: str) -> float:
        known = self.known.get(test)
        if known is not None:
            return known
        return sum(self.known.values()) / len(self.known) if self.known else _UNKNOWN


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"


class TimeLeft:
    """The plugin. In a run with workers it is the controller's, which hears of all tests."""

    def __init__(self, config: pytest.Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        # Without the cache plugin there is no such attribute.
        self._cache = getattr(config, "cache", None)
        stored = self._cache.get(CACHE, {}) if self._cache else {}
        workers = len(getattr(config.option, "tx", None) or ()) or 1
        self._grouped = workers > 1 and getattr(config.option, "dist", "") == "loadgroup"
        self._estimate = Estimate(stored if isinstance(stored, dict) else {}, workers)
        self._took: dict[str, float] = {}
        self._started = self._said = clock()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without workers the tests are known here."""
        if session.items:
            self._begin(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """With workers each of them tells the same tests."""
        if not self._estimate.total:
            self._begin(map(self._plain, ids))

    def _begin(self, tests: Iterable[str]) -> None:
        self._estimate.begin(tests)
        self._started = self._said = self._clock()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._plain(report.nodeid)
        self._took[test] = self._took.get(test, 0.0) + report.duration
        if report.when != "teardown":
            return
        self._estimate.finish(test)
        now = self._clock()
        if now - self._said >= INTERVAL:
            self._said = now
            self._say(self._estimate.line(now - self._started))

    def _plain(self, nodeid: str) -> str:
        """A test's id without the group that xdist adds, so that runs with and without workers know each other."""
        return nodeid.rpartition("@")[0] if self._grouped else nodeid

    def _say(self, line: str) -> None:
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    def pytest_sessionfinish(self) -> None:
        """Keeps what the tests took for the next run, beside what others took before."""
        if self._cache and self._took:
            kept = {**self._estimate.known, **{t: round(s, 2) for t, s in self._took.items()}}
            self._cache.set(CACHE, kept)


def pytest_configure(config: pytest.Config) -> None:
    """Not in xdist's workers, whose lines nobody sees."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(TimeLeft(config), "weightyard-time-left")

"""pytest-timeout's limits in idle seconds: a test that stands still is ended, a busy machine may take its time.

A plugin for tests/conftest.py. It replaces the plugin's alarm clock by one thread that looks at `IdleClock`; how a test
is ended, with every thread's stack, stays pytest-timeout's.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType

import pytest
import pytest_timeout

from tests.servers.idle_clock import IdleClock

LOOK_SECONDS = 1.0


class Watch:
    """Calls back once, from the main thread's SIGALRM, when `limit` idle seconds have passed since `start`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._clock: IdleClock | None = None
        self._limit = 0.0
        threading.Thread(target=self._run, name="standstill", daemon=True).start()

    def start(self, limit: float, expired: Callable[[], None]) -> None:
        """Watch from now on. For the main thread, as signals are."""

        def handler(_number: int, _frame: FrameType | None) -> None:
            expired()

        signal.signal(signal.SIGALRM, handler)
        with self._changed:
            self._clock, self._limit = IdleClock(), limit
            self._changed.notify()

    def stop(self) -> None:
        """Watch no more; the handler isn't called after this."""
        with self._changed:
            self._clock = None
        signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def _run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._clock is not None)
                self._changed.wait(LOOK_SECONDS)
                if self._clock is not None and self._clock() > self._limit:
                    self._clock = None
                    signal.pthread_kill(main, signal.SIGALRM)


@functools.cache
def _watch() -> Watch:
    """One thread for the whole run, from the first test on."""
    return Watch()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool:
    """Start the watch in place of pytest-timeout's timer."""
    _watch().start(settings.timeout, lambda: pytest_timeout.timeout_sigalrm(item, settings))
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """Stop it."""
    _watch().stop()
    return True

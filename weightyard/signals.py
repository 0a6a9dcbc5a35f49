"""Stops a transfer gracefully: SIGTERM, which CI sends to jobs, acts like Ctrl-C.

After the first signal, work that can be resumed is completed, such as a chunk of an upload. The second signal ends the
process immediately.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the context, the first signal raises KeyboardInterrupt in the main thread."""

    if threading.current_thread() is not threading.main_thread():
        # Python allows signal handlers only in the main thread.
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        # From now on the default action applies: a second signal must always end the process.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stops_gently(command: Callable[P, R]) -> Callable[P, R]:
    """Runs a command within `stoppable`."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with stoppable():
            return command(*args, **kwargs)

    return wrapped

"""How a command that transfers is asked to stop: SIGTERM, as CI sends it to a job, does what Ctrl-C does.

The first request lets what is under way end where it can be continued, a chunk of an upload for instance. The second
one ends the process as the signal always does.
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
    """While in the context, the first signal raises KeyboardInterrupt in the main thread."""

    if threading.current_thread() is not threading.main_thread():
        # Signals are the main thread's business.
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
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
    """A command that runs within `stoppable`."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with stoppable():
            return command(*args, **kwargs)

    return wrapped

"""Maps errors to HTTP statuses and wire documents, and documents back to the error classes."""

from __future__ import annotations

from typing import Final

from cache_agent import errors as ours
from cache_agent.api.wire import ErrorView
from modelimage import errors
from modelimage.errors import RateLimited, RemoteRefused, WeightyardError

# The first class that matches wins, so subclasses come before their bases.
STATUSES: Final[tuple[tuple[type[WeightyardError], int], ...]] = (
    (errors.NotFound, 404),
    (errors.AccessDenied, 403),
    (errors.InUse, 409),
    (ours.Exhausted, 503),
    (errors.Busy, 409),
    (ours.Cancelled, 499),
    (errors.InvalidInput, 400),
    (errors.RateLimited, 503),
    (errors.Unreachable, 502),
    (errors.RemoteRefused, 502),
    (errors.DigestMismatch, 502),
    (errors.InvalidImage, 502),
    (errors.TimedOut, 504),
    (errors.NoSpace, 507),
)


def status_of(error: WeightyardError) -> int:
    """The HTTP status of an error; 500 for this node's own faults."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def to_view(error: WeightyardError) -> ErrorView:
    """The wire document of an error."""
    kinds = (kind.__name__ for kind in type(error).__mro__ if _known(kind.__name__) is kind)
    return ErrorView(
        kind=next(kinds),
        name=error.kind,
        message=error.message,
        hint=error.hint,
        retry_after=error.retry_after if isinstance(error, RateLimited) else None,
    )


def from_view(view: ErrorView) -> WeightyardError:
    """The error that the server raised, of the nearest class that both know. An unknown one becomes RemoteRefused."""
    kind = _known(view.kind)
    error: WeightyardError
    if kind is None:
        error = RemoteRefused(view.message, hint=view.hint)
    elif kind is RateLimited:
        error = RateLimited(view.message, hint=view.hint, retry_after=view.retry_after)
    else:
        error = kind(view.message, hint=view.hint)
    error.kind = view.name or view.kind
    return error


def _known(name: str) -> type[WeightyardError] | None:
    """The class of this name that every client knows."""
    kind = getattr(errors, name, None) or getattr(ours, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, WeightyardError) else None

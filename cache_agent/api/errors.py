"""Errors over the wire: one table to HTTP statuses, and the way back to the class that was raised."""

from __future__ import annotations

from typing import Final

from cache_agent import errors as ours
from cache_agent.api.wire import ErrorView
from modelimage import errors
from modelimage.errors import RateLimited, RemoteRefused, WeightyardError

# The most specific class that matches, from the top.
STATUSES: Final[tuple[tuple[type[WeightyardError], int], ...]] = (
    (errors.NotFound, 404),
    (errors.AccessDenied, 403),
    (errors.InUse, 409),
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
    """The HTTP status of an error; 500 for what is this node's fault."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def to_view(error: WeightyardError) -> ErrorView:
    """An error as it goes over the wire."""
    return ErrorView(
        kind=type(error).__name__,
        message=error.message,
        hint=error.hint,
        retry_after=error.retry_after if isinstance(error, RateLimited) else None,
    )


def from_view(view: ErrorView) -> WeightyardError:
    """The error that was raised on the other side. One of an unknown class is a RemoteRefused."""
    kind = getattr(errors, view.kind, None) or getattr(ours, view.kind, None)
    if kind is RateLimited:
        return RateLimited(view.message, hint=view.hint, retry_after=view.retry_after)
    if isinstance(kind, type) and issubclass(kind, WeightyardError):
        return kind(view.message, hint=view.hint)
    return RemoteRefused(view.message, hint=view.hint)

"""Maps the HTTP statuses of object stores to errors: one table for S3 and Google Cloud Storage. Pure."""

from __future__ import annotations

from typing import Final

from modelimage.errors import (
    AccessDenied,
    InvalidCheckpoint,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)

RATE_LIMITED: Final = 429


def refusal(
    store: str, what: str, status: int, *, answer: str, credentials_hint: str
) -> WeightyardError:
    """The error for a `status`. `store`: its name for people; `answer`: what it stated, status included."""
    if status == 404:
        return NotFound(
            f"{what}: not in {store} ({answer})",
            hint="Check the bucket and the prefix.",
        )
    if status in (401, 403):
        return AccessDenied(f"{store} denies access to {what} ({answer})", hint=credentials_hint)
    # 412: the pinned version is gone; 416: the object became shorter.
    if status in (412, 416):
        return InvalidCheckpoint(
            f"{what} changed while it was read", hint="Build again when nothing writes there."
        )
    if status == RATE_LIMITED:
        return RateLimited(
            f"{store} limits the request rate for {what} ({answer})", hint="Try again later."
        )
    if status >= 500:
        return Unreachable(f"{store} failed at {what} ({answer})", hint="Try again later.")
    return RemoteRefused(f"{store} refused {what} ({answer})")

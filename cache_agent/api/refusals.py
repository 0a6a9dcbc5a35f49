"""What a Kubernetes API server's refusal means, as our errors. The agent and the controller both ask one.

Pure: takes a status and a text. Knows no connection and no kind of object.
"""

from __future__ import annotations

import json
from typing import NoReturn

from modelimage.errors import (
    AccessDenied,
    Busy,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
)

_MOST_SAID = 500


class Conflict(Busy):
    """The object changed since it was read, is another one, or is there already (409): read it again."""


class Gone(Unreachable):
    """What was asked from is too long ago (410): list anew."""


def refuse(status: int, text: str, call: str, *, role: str, retry_after: str | None) -> NoReturn:
    """Raise what a status of 400 or more means.

    `text`: the body, a Status object if the server made it. `call`: what was asked. `role`: the ClusterRole's owner.
    `retry_after`: that header. Raises NotFound, AccessDenied, Conflict, Gone, RateLimited, InvalidInput, Unreachable,
    RemoteRefused.
    """
    message = f"{call}: {_said(text)[:_MOST_SAID]}"
    match status:
        case 404:
            raise NotFound(message)
        case 401 | 403:
            raise AccessDenied(message, hint=f"Check the {role}'s ClusterRole.")
        case 409:
            raise Conflict(message)
        case 410:
            raise Gone(message)
        case 429:
            seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
            raise RateLimited(message, retry_after=seconds)
        case 400 | 422:
            raise InvalidInput(message)
        case _ if status >= 500:
            raise Unreachable(message)
    raise RemoteRefused(message)


def _said(text: str) -> str:
    try:
        return str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        return text

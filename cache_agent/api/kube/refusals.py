"""Maps a Kubernetes API server's error responses to Weightyard's errors, for the agent and the controller.

Pure: takes a status and a text. Must not depend on connections or kinds of objects.
"""

from __future__ import annotations

import json
from typing import NoReturn

from modelimage.bounds import parse_count
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
# Seconds; a longer Retry-After counts as none.
_MOST_WAIT = 3600


class Conflict(Busy):
    """409: the object has changed since it was read, was replaced, or exists already. Read it again."""


class Gone(Unreachable):
    """410: the resourceVersion has expired. List again.

    `rest` is the token of a list's remaining pages as they are now, empty for a watch.
    """

    def __init__(self, message: str, *, rest: str = "") -> None:
        super().__init__(message)
        self.rest = rest


class ServerFailed(Unreachable):
    """5xx: the API server, or a webhook that it calls for this object, failed. Other requests may succeed."""


def refuse(status: int, text: str, call: str, *, role: str, retry_after: str | None) -> NoReturn:
    """Raise the error for a status of 400 or more.

    `text`: the body, a Status object if the API server wrote it. `call`: the request, for the message. `role`: the
    ClusterRole's owner. `retry_after`: that header. Raises NotFound, AccessDenied, Conflict, Gone, RateLimited,
    InvalidInput, ServerFailed, RemoteRefused.
    """
    message = f"{call}: {_said(text)[:_MOST_SAID]}"
    match status:
        case 404:
            raise NotFound(message)
        case 401:
            raise AccessDenied(
                message,
                hint=f"The {role}'s token or certificate has expired, was revoked, or is another cluster's.",
            )
        case 403:
            raise AccessDenied(message, hint=f"Check the {role}'s ClusterRole.")
        case 409:
            raise Conflict(message)
        case 410:
            raise Gone(message, rest=_rest(text))
        case 429:
            seconds = parse_count(retry_after, most=_MOST_WAIT)
            raise RateLimited(message, retry_after=seconds)
        case 400 | 422:
            raise InvalidInput(message)
        case _ if status >= 500:
            raise ServerFailed(message)
    raise RemoteRefused(message)


def _rest(text: str) -> str:
    try:
        return str((json.loads(text).get("metadata") or {}).get("continue") or "")
    except (ValueError, AttributeError):
        return ""


def _said(text: str) -> str:
    try:
        return str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        return text

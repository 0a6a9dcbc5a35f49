"""Maps a registry's status and error body to our error classes (distribution-spec, "Error Codes")."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

from modelimage.bounds import MALFORMED
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.registry.exchange import Response, WebOrigin

# Only the first message of an error is used, so larger bodies are not worth reading.
_MAX_ERROR_BODY: Final = 64 << 10
_ABSENT: Final = frozenset(
    {"MANIFEST_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN"}
)


def refusal(response: Response, what: str, registry: WebOrigin) -> WeightyardError:
    """The error for an unsuccessful response. Consumes the response's body, and quotes it if `registry` sent it."""
    if WebOrigin.parse(response.url) != registry:
        # A redirect or a token server: another server's words may be meant for this process alone.
        response.discard()
        return error_for(response.status, frozenset(), f"{what}: {_phrase(response.status)}")
    try:
        body = response.read(_MAX_ERROR_BODY)
    except (Unreachable, RemoteRefused):
        # The status is enough for an error; a broken body must not hide it.
        body = b""
    codes, message = parse_errors(body)
    return error_for(response.status, codes, f"{what}: {message or _phrase(response.status)}")


def parse_errors(body: bytes) -> tuple[frozenset[str], str]:
    """The codes and the first message of an error body; both empty if it isn't one. Never raises."""
    try:
        errors = json.loads(body)["errors"]
        codes = [str(each["code"]).upper() for each in errors]
        first = errors[0]
        message = str(first.get("message") or first["code"])
    except MALFORMED:
        return frozenset(), ""
    return frozenset(codes), _one_line(message)


def error_for(status: int, codes: frozenset[str], message: str) -> WeightyardError:
    """The error class for a status and its error codes."""
    # The code first: it is more specific than the status.
    if "DIGEST_INVALID" in codes:
        return DigestMismatch(
            message, hint="The uploaded bytes don't match their digest: build again."
        )
    if status in (401, 403):
        return AccessDenied(
            message, hint="Log in with an account that may do this, for example with docker login."
        )
    if status == 404 or codes & _ABSENT:
        return NotFound(message, hint="Check the name, and log in if the repository is private.")
    if status == 413:
        return RemoteRefused(
            message, hint="The registry limits sizes: build with a smaller --max-layer-size."
        )
    if status >= 500:
        return Unreachable(message, hint="Try again later.")
    return RemoteRefused(message)


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]

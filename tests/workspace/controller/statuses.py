"""An API server's refusals: a Status object as the body, with the reason that belongs to the code."""

from __future__ import annotations

from typing import Any

from aiohttp import web

Json = dict[str, Any]
# kubectl shows these words, not the number.
_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired",
    422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
}  # fmt: skip


def status(code: int, message: str, **metadata: str) -> Json:
    """A Status of failure."""
    taken = code == 409 and message.endswith("already exists")
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure", "message": message,
        "reason": "AlreadyExists" if taken else _REASONS.get(code, ""), "code": code,
    }  # fmt: skip


def failure(code: int, message: str, **metadata: str) -> web.Response:
    """It as a response; who asks too often may ask again at once."""
    headers = {"Retry-After": "0"} if code == 429 else {}
    return web.json_response(status(code, message, **metadata), status=code, headers=headers)

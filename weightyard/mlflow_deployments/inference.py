"""Asks an inference server over HTTP. All of urllib3's errors are mapped here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import urllib3

from modelimage.errors import (
    AccessDenied,
    EngineFailed,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    TimedOut,
    Unreachable,
    WeightyardError,
    first_line,
)
from weightyard.mlflow_deployments.inputs import InferenceRequest

Json = dict[str, Any]
_TOGETHER: Final = 8  # requests at a time: servers answer them in one batch
_MOST_BYTES: Final = 64 << 20
_MOST_LINE: Final = 1 << 20
_CONNECT_SECONDS: Final = 10.0
_DATA: Final = b"data:"
_END: Final = b"[DONE]"


def ask_all(url: str, requests: Sequence[InferenceRequest], *, seconds: float) -> list[Json]:
    """The answers, in the order of the requests. `seconds` bounds each. Raises WeightyardError, the first there is."""
    with _pool(seconds) as pool, ThreadPoolExecutor(_TOGETHER) as threads:
        return list(threads.map(lambda each: _ask(pool, url, each), requests))


def ask_stream(url: str, request: InferenceRequest, *, seconds: float) -> Iterator[Json]:
    """The parts of an answer as they come. `seconds` bounds the time between two. Raises as `ask_all`."""
    body = {**request.body, "stream": True}
    with _pool(seconds) as pool:
        answer = _post(pool, url + request.path, body)
        try:
            yield from _parts(answer)
        except urllib3.exceptions.HTTPError as error:
            raise _broken(url, error) from error
        finally:
            answer.close()


def _pool(seconds: float) -> urllib3.PoolManager:
    timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds)
    return urllib3.PoolManager(maxsize=_TOGETHER, retries=False, timeout=timeout)


def _ask(pool: urllib3.PoolManager, url: str, request: InferenceRequest) -> Json:
    answer = _post(pool, url + request.path, request.body)
    try:
        data = answer.read(_MOST_BYTES + 1)
    except urllib3.exceptions.HTTPError as error:
        raise _broken(url, error) from error
    finally:
        answer.close()
    return _document(data)


def _post(pool: urllib3.PoolManager, url: str, body: Any) -> urllib3.BaseHTTPResponse:
    """An answer whose body is left to be read. Raises what its status means."""
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        answer = pool.request("POST", url, body=data, headers=headers, preload_content=False)
        if answer.status == 200:
            return answer
        said = answer.read(_MOST_LINE).decode(errors="replace")
        answer.close()
    except urllib3.exceptions.HTTPError as error:
        raise _broken(url, error) from error
    raise _refusal(answer.status, said)


def _parts(answer: urllib3.BaseHTTPResponse) -> Iterator[Json]:
    """The events of a stream (WHATWG HTML, "Server-sent events"), of which servers use lines of data alone."""
    rest = b""
    for piece in answer.stream(1 << 16):
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MOST_LINE:
            raise RemoteRefused("the server's stream has a line without end")
        for line in lines:
            told = line.strip().removeprefix(_DATA).strip()
            if told == _END:
                return
            if line.startswith(_DATA):
                yield _document(told)


def _document(data: bytes) -> Json:
    if len(data) > _MOST_BYTES:
        raise RemoteRefused(f"the server's answer has more than {_MOST_BYTES >> 20} MiB")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RemoteRefused(f"the server's answer isn't JSON: {data[:200]!r}") from error
    if not isinstance(found, dict):
        raise RemoteRefused(f"the server's answer is no object: {data[:200]!r}")
    return found


def _refusal(status: int, said: str) -> WeightyardError:
    """The error for a server's status and words."""
    try:
        found = json.loads(said)
        told = found.get("error", found)
        reason = str(told.get("message", told) if isinstance(told, dict) else told)
    except (ValueError, AttributeError):
        reason = said
    text = f"the server answered {status}: {reason.strip()[:400]}"
    kinds: dict[int, type[WeightyardError]] = {
        401: AccessDenied, 403: AccessDenied, 404: NotFound, 429: RateLimited, 503: RateLimited,
    }  # fmt: skip
    if status in kinds:
        return kinds[status](text)
    return InvalidInput(text) if 400 <= status < 500 else EngineFailed(text)


def _broken(url: str, error: Exception) -> WeightyardError:
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return TimedOut(
            "the server didn't answer in time", hint="Raise MLFLOW_DEPLOYMENT_PREDICT_TIMEOUT."
        )
    return Unreachable(f"the server at {url} doesn't answer: {first_line(error)}")

"""A proxy in front of a real registry that does, by name, what registries and networks do on bad days.

It passes requests on and streams bodies both ways; each fault may answer itself, spoil a request, or spoil an answer.
`seen` lists the requests, `uploaded` counts the bytes of upload bodies that arrived here.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast

from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.rejecting_storage import RejectingStorage

PIECE = 64 << 10
HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive"})


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_blob(self) -> bool:
        """Whether it reads a blob."""
        return self.method == "GET" and "/blobs/sha256:" in self.path

    @property
    def is_upload(self) -> bool:
        """Whether it sends bytes of a blob."""
        return self.method in ("PATCH", "PUT") and "/blobs/uploads/" in self.path

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length", 0))


class HungUp(Exception):
    """The fault cut the connection."""


class Fault:
    """Does nothing; the faults override what they spoil. `times` is how often it strikes, then all is well."""

    def __init__(self, *, times: int = 1) -> None:
        self._left = times
        self._lock = threading.Lock()

    def strikes(self) -> bool:
        """Whether it is time, counted down."""
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        """An answer of its own instead of the registry's."""
        return None

    def speaks(self, request: Seen, handler: Handler) -> bool:
        """Whether it answers on the connection itself, with what may be no HTTP."""
        return False

    def request_headers(self, request: Seen, headers: dict[str, str]) -> dict[str, str]:
        return headers

    def request_body(self, request: Seen, body: Iterator[bytes]) -> Iterator[bytes]:
        return body

    def request_path(self, request: Seen) -> str:
        return request.path

    def answered(self, request: Seen, location: str) -> None:
        """The registry's answer named a Location."""

    def answer_status(self, request: Seen, status: int) -> int:
        return status

    def answer_headers(self, request: Seen) -> dict[str, str]:
        """Headers beside the registry's own."""
        return {}

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return body


class ExpiringToken(Fault):
    """Each bearer token is good for `uses` requests, then the registry gets to see another one."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self._uses = uses
        self._used: dict[str, int] = {}

    def request_headers(self, request: Seen, headers: dict[str, str]) -> dict[str, str]:
        token = headers.get("Authorization", "")
        if not token.startswith("Bearer "):
            return headers
        with self._lock:
            self._used[token] = self._used.get(token, 0) + 1
            expired = self._used[token] > self._uses
        return {**headers, "Authorization": "Bearer expired"} if expired else headers


class LateAnswer(Fault):
    """Every answer comes `seconds` late, as from a registry that asks another one first."""

    def __init__(self, *, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        time.sleep(self._seconds)
        return None


class RateLimitSeconds(Fault):
    """429 with Retry-After in seconds."""

    def __init__(self, seconds: int = 1, *, times: int = 1) -> None:
        super().__init__(times=times)
        self._seconds = seconds

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (429, {"Retry-After": self.retry_after()}, b"slow down") if self.strikes() else None

    def retry_after(self) -> str:
        return str(self._seconds)


class RateLimitDate(RateLimitSeconds):
    """429 with Retry-After as a date."""

    def retry_after(self) -> str:
        when = datetime.now(UTC) + timedelta(seconds=self._seconds)
        return format_datetime(when, usegmt=True)


class TruncatedBody(Fault):
    """The connection ends after `after` bytes of a blob."""

    def __init__(self, after: int, *, times: int = 1) -> None:
        super().__init__(times=times)
        self._after = after

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return self._cut(body) if request.is_blob and self.strikes() else body

    def _cut(self, body: Iterator[bytes]) -> Iterator[bytes]:
        left = self._after
        for piece in body:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                raise HungUp


class WrongBytes(Fault):
    """One byte of a blob is another."""

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return self._spoil(body) if request.is_blob and self.strikes() else body

    def _spoil(self, body: Iterator[bytes]) -> Iterator[bytes]:
        first = next(body, b"")
        yield bytes([first[0] ^ 1]) + first[1:] if first else first
        yield from body


class IgnoredRange(Fault):
    """The registry never heard of ranges."""

    def request_headers(self, request: Seen, headers: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in headers.items() if name != "Range"}


class BrokenUpload(Fault):
    """The connection ends after `after` bytes of an upload body; the registry has got those."""

    def __init__(self, after: int, *, times: int = 1) -> None:
        super().__init__(times=times)
        self._after = after

    def request_body(self, request: Seen, body: Iterator[bytes]) -> Iterator[bytes]:
        wanted = request.is_upload and request.length > self._after
        return self._cut(body) if wanted and self.strikes() else body

    def _cut(self, body: Iterator[bytes]) -> Iterator[bytes]:
        left = self._after
        for piece in body:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                raise HungUp


class BufferedUploads(Fault):
    """Bodies are passed on once they are whole, as a buffering reverse proxy does: what breaks off never arrives."""

    def request_body(self, request: Seen, body: Iterator[bytes]) -> Iterator[bytes]:
        return iter([b"".join(body)]) if request.is_upload else body


class LostUpload(Fault):
    """The registry has forgotten the session when it is next used."""

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if "/blobs/uploads/" not in request.path or request.method == "POST":
            return None
        error = b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"upload unknown"}]}'
        return (404, {}, error) if self.strikes() else None


class NoChunks(Fault):
    """The registry takes no PATCH; with `unranged`, it takes the one of `docker push`, which has no Content-Range."""

    def __init__(self, status: int = 416, *, unranged: bool = False) -> None:
        super().__init__()
        self._status = status
        self._unranged = unranged

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if request.method != "PATCH":
            return None
        taken = self._unranged and "Content-Range" not in request.headers
        return None if taken else (self._status, {}, b"")


class ForeignRedirect(Fault):
    """Blobs are elsewhere, on a host that rejects whoever brings a registry's credentials along."""

    def __init__(self, storage: RejectingStorage) -> None:
        super().__init__()
        self._storage = storage

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if not request.is_blob:
            return None
        return 307, {"Location": f"{self._storage.url}{request.path}?signature=x"}, b""


class Stall(Fault):
    """A blob stops coming after `after` bytes, and nobody hangs up."""

    def __init__(self, after: int, *, times: int = 1) -> None:
        super().__init__(times=times)
        self._after = after

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return self._stop(body, handler) if request.is_blob and self.strikes() else body

    def _stop(self, body: Iterator[bytes], handler: Handler) -> Iterator[bytes]:
        left = self._after
        for piece in body:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                handler.wfile.flush()
                # The client's hanging up is what ends it.
                handler.connection.recv(1)
                raise HungUp


class HeldBack(Fault):
    """What lies at `start` of a blob and after isn't sent until it is let go; the rest comes at once."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self._start, self.let_go = start, threading.Event()

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if request.is_blob and first >= self._start:
            self.let_go.wait()
        return body


class _ProxyHandler(Handler):
    @property
    def _proxy(self) -> FaultyRegistry:
        return cast("FaultyRegistry", cast("Any", self.server).owner)

    def do_GET(self) -> None:
        request = Seen(self.command, self.path, dict(self.headers.items()))
        self._proxy.note(request)
        try:
            if not self._answered_by_fault(request):
                self._forward(request)
        except (HungUp, ConnectionError, http.client.HTTPException):
            self.close_connection = True

    def _answered_by_fault(self, request: Seen) -> bool:
        for fault in self._proxy.faults:
            if fault.speaks(request, self):
                raise HungUp
            answer = fault.answers(request)
            if answer is not None:
                status, headers, body = answer
                for _ in self._incoming(request):
                    pass
                self.answer(status, body, headers)
                return True
        return False

    def _forward(self, request: Seen) -> None:
        headers, body, path = dict(request.headers), self._incoming(request), request.path
        for fault in self._proxy.faults:
            path = fault.request_path(request)
            headers = fault.request_headers(request, headers)
            body = fault.request_body(request, body)
        upstream = http.client.HTTPConnection(self._proxy.upstream)
        try:
            sends = request.length > 0
            upstream.request(request.method, path, body if sends else None, headers)
            self._send_back(request, upstream.getresponse())
        finally:
            upstream.close()

    def _incoming(self, request: Seen) -> Iterator[bytes]:
        left = request.length
        while left:
            piece = self.rfile.read1(min(left, PIECE))
            if not piece:
                raise HungUp
            left -= len(piece)
            self._proxy.count(request, len(piece))
            yield piece

    def _send_back(self, request: Seen, answer: http.client.HTTPResponse) -> None:
        status = answer.status
        more: dict[str, str] = {}
        for fault in self._proxy.faults:
            fault.answered(request, answer.getheader("Location", ""))
            status = fault.answer_status(request, status)
            more |= fault.answer_headers(request)
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | {"date", "server"}:
                self.send_header(name, value)
        self.end_headers()
        body: Iterator[bytes] = iter(lambda: answer.read(PIECE), b"")
        for fault in self._proxy.faults:
            body = fault.answer_body(request, body, self)
        for piece in body:
            self.wfile.write(piece)


for _method in ("HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_ProxyHandler, f"do_{_method}", _ProxyHandler.do_GET)


class FaultyRegistry(LoopbackServer):
    """The proxy, in front of the registry at `upstream` (host:port). `faults` may be changed while it runs."""

    HANDLER = _ProxyHandler

    def __init__(self, upstream: str, *faults: Fault) -> None:
        self.upstream = upstream
        self.faults: Sequence[Fault] = faults
        self.seen: list[Seen] = []
        self.uploaded = 0
        self._lock = threading.Lock()

    def note(self, request: Seen) -> None:
        with self._lock:
            self.seen.append(request)

    def count(self, request: Seen, size: int) -> None:
        if request.is_upload:
            with self._lock:
                self.uploaded += size

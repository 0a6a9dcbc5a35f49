"""Faults of registries that lie or mean harm, for `FaultyRegistry`: each a named class."""

from __future__ import annotations

import contextlib
import gzip
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

from tests.servers.faulty_registry import PIECE, Fault, HungUp, Seen
from tests.servers.httpserver import Handler

Wanted = Callable[[Seen], bool]


def blobs(request: Seen) -> bool:
    return request.is_blob


def manifests(request: Seen) -> bool:
    return "/manifests/" in request.path


def anything(request: Seen) -> bool:
    return True


class _On(Fault):
    """A fault that strikes requests of one sort."""

    def __init__(self, wanted: Wanted = anything, *, times: int = 1) -> None:
        super().__init__(times=times)
        self._wanted = wanted

    def hits(self, request: Seen) -> bool:
        return self._wanted(request) and self.strikes()


class Status(_On):
    """An answer with a status of its own, and headers."""

    def __init__(
        self, status: int, wanted: Wanted = anything, *, times: int = 1, **headers: str
    ) -> None:
        super().__init__(wanted, times=times)
        self._status = status
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (self._status, self._headers, b"no") if self.hits(request) else None


class WrongLength(_On):
    """An answer that states another length than its body has."""

    def __init__(self, length: str, wanted: Wanted = anything, *, times: int = 1) -> None:
        super().__init__(wanted, times=times)
        self._length = length

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (200, {"Content-Length": self._length}, b"x" * 500) if self.hits(request) else None


class RedirectLoop(_On):
    """Each address leads to the next one, on this registry, for ever."""

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if not self.hits(request):
            return None
        return 307, {"Location": f"{request.path.partition('?')[0]}?turn={self._left}"}, b""


class RedirectTo(_On):
    """What is asked for is said to be at another address."""

    def __init__(self, location: str, wanted: Wanted = anything, *, times: int = 1) -> None:
        super().__init__(wanted, times=times)
        self._location = location

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (307, {"Location": self._location}, b"") if self.hits(request) else None


class WrongContentRange(_On):
    """Another range than the one asked for, as the header says; the bytes are of no range at all."""

    def __init__(self, text: str = "bytes 5-9/10", *, times: int = 1) -> None:
        super().__init__(blobs, times=times)
        self._text = text

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if not self.hits(request):
            return None
        return 206, {"Content-Range": self._text}, bytes(5)


class Raw(_On):
    """Bytes on the connection that are no HTTP, or not all of it; then it is cut."""

    def __init__(self, data: bytes, wanted: Wanted = anything, *, times: int = 1) -> None:
        super().__init__(wanted, times=times)
        self._data = data

    def speaks(self, request: Seen, handler: Handler) -> bool:
        if not self.hits(request):
            return False
        with contextlib.suppress(OSError):
            handler.wfile.write(self._data)
        return True


class GzipBomb(_On):
    """A few kilobytes that say they are gzip and become a gigabyte."""

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (200, {"Content-Encoding": "gzip"}, bomb()) if self.hits(request) else None


def bomb(size: int = 1 << 30) -> bytes:
    """Gzip of so many zero bytes, whole MiB: one is compressed and repeated, as compressing all takes seconds."""
    piece = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A full flush ends the block on a whole byte, and the next one refers to nothing before it.
    block = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(size >> 20):
        checksum = zlib.crc32(piece, checksum)
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return header + block * (size >> 20) + packer.flush() + struct.pack("<II", checksum, size)


class Endless(_On):
    """A body without a length that never ends, as long as somebody reads it."""

    def speaks(self, request: Seen, handler: Handler) -> bool:
        if not self.hits(request):
            return False
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                handler.wfile.write(b"%x\r\n" % PIECE + bytes(PIECE) + b"\r\n")
        return True


class Hangs(_On):
    """No answer until it is let go, or whoever asked gives up."""

    def __init__(self, wanted: Wanted = anything, *, times: int = 1) -> None:
        super().__init__(wanted, times=times)
        self.reached, self.let_go = threading.Event(), threading.Event()

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if self.hits(request):
            self.reached.set()
            self.let_go.wait()
        return None


class Trickle(_On):
    """A blob that comes a byte at a time, `pause` seconds apart, until it is let go."""

    def __init__(self, pause: float = 0.05, *, times: int = 1) -> None:
        super().__init__(blobs, times=times)
        self._pause = pause
        self.let_go = threading.Event()

    def answer_body(
        self, request: Seen, body: Iterator[bytes], handler: Handler
    ) -> Iterator[bytes]:
        return self._slowly(body) if self.hits(request) else body

    def _slowly(self, body: Iterator[bytes]) -> Iterator[bytes]:
        for piece in body:
            for at in range(len(piece)):
                if self.let_go.wait(self._pause):
                    raise HungUp
                yield piece[at : at + 1]


class OtherDocument(_On):
    """A manifest is answered with a document of another digest."""

    def __init__(self, data: bytes, *, times: int = 1) -> None:
        super().__init__(manifests, times=times)
        self._data = data

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        kind = "application/vnd.oci.image.manifest.v1+json"
        return (200, {"Content-Type": kind}, self._data) if self.hits(request) else None


GARBAGE = (
    b"\x00\xff\x16\x03\x01 not a word of HTTP\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 2_000_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\n\r\nabcd",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 200,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200",
    b"",
    gzip.compress(b"HTTP/1.1 200 OK"),
)

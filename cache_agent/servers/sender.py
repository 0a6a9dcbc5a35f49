"""Sends pieces of files and memory as one HTTP response. Files go from the page cache to the socket by sendfile.

Nothing is buffered whole, so a slow client costs a connection but no memory. Pieces of up to 64 KiB are read and
joined instead, because a system call for each would cost more than the copy.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

from aiohttp import web

from cache_agent.fetch.values import ReadablePrefix
from cache_agent.node.threads import BlockingExecutor
from cache_agent.store.disk import open_plain
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.ranges import ByteRange, parse_range
from modelimage.repository import BlobStream

_SMALL: Final = 64 << 10
_READAHEAD: Final = 8 << 20
_RELAY_BUFFER: Final = 256 << 10
_POLL_SECONDS: Final = 0.02
# Only Linux has it.
_TCP_CORK: Final[int | None] = getattr(socket, "TCP_CORK", None)
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A range of a file."""

    path: Path
    wanted: ByteRange


# An empty piece flushes: the next bytes aren't there yet, so the pending ones must not wait for them.
Piece = bytes | FilePiece


class ClientGone(ConnectionResetError):
    """The client closed the connection in the middle of a response."""


def requested_range(request: web.Request, size: int, etag: str) -> ByteRange | None:
    """The range that a request asks for, of `size` bytes; None for all. Raises InvalidInput, which means a 416."""
    header = request.headers.get("Range")
    condition = request.headers.get("If-Range")
    # Only a GET has ranges (RFC 9110, section 14.2). A client that holds a part of another version must get the whole
    # (section 13.1.5).
    if header is None or request.method != "GET" or condition not in (None, etag):
        return None
    return parse_range(header, size)


def is_current(request: web.Request, etag: str) -> bool:
    """Whether the client says that it holds this version (If-None-Match; RFC 9110, section 13.1.2)."""
    stated = ",".join(request.headers.getall("If-None-Match", ()))
    tags = {each.strip().removeprefix("W/") for each in stated.split(",")}
    return "*" in tags or etag in tags


def answer_of(
    request: web.Request, size: int, etag: str, headers: dict[str, str]
) -> tuple[web.StreamResponse, ByteRange | None]:
    """The unsent response to a GET or HEAD of `size` bytes, and the range of bytes to send in it.

    The range is None for a HEAD, a 304, a 416 and an empty body.
    """
    common = {**headers, "Accept-Ranges": "bytes", "ETag": etag}
    # Before the range: a client that holds this version needs no part of it.
    if is_current(request, etag):
        return web.Response(status=304, headers=common), None
    try:
        wanted = requested_range(request, size, etag)
    except InvalidInput:
        unsatisfied = {**common, "Content-Range": f"bytes */{size}"}
        return web.Response(status=416, headers=unsatisfied), None
    answer = web.StreamResponse(status=206 if wanted else 200, headers=common)
    if wanted:
        answer.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    answer.content_length = len(wanted) if wanted else size
    # A HEAD gets the headers of the GET (RFC 9110, section 9.3.2); an empty body has no range to send.
    if request.method == "HEAD" or size == 0:
        return answer, None
    return answer, wanted or ByteRange(0, size)


async def send(
    request: web.Request, answer: web.StreamResponse, pieces: AsyncIterator[Piece]
) -> None:
    """Send the headers and the pieces. The headers wait for the first piece, so its errors can still become a status.

    Raises what the pieces raise, OSError when a file or the connection fails; `answer.prepared`: the headers are sent.
    """
    first = await anext(pieces)
    await answer.prepare(request)
    pending = bytearray()
    async for piece in _chain(first, pieces):
        if isinstance(piece, FilePiece) and len(piece.wanted) > _SMALL:
            await _flush(answer, pending)
            await _send_file(request, answer, piece)
            continue
        # Small pieces are joined: a tar header and a system call for each would cost more than the copy.
        pending += piece if isinstance(piece, bytes) else _read(piece)
        if len(pending) >= _SMALL or piece == b"":
            await _flush(answer, pending)
    await _flush(answer, pending)
    await answer.write_eof()


async def deliver(
    request: web.Request,
    answer: web.StreamResponse,
    pieces: AsyncGenerator[Piece, None],
    held: AbstractContextManager[object],
) -> None:
    """Send the pieces while `held` protects their files from eviction. Before the headers are sent, raises as `send`.

    After that only a short body can report a failure: the connection is closed.
    """
    try:
        async with aclosing(pieces):
            with held:
                await send(request, answer, pieces)
    except (WeightyardError, OSError):
        if not answer.prepared:
            raise
        hang_up(request)


async def _chain(first: Piece, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in pieces:
        yield piece


async def each(pieces: Iterable[Piece]) -> AsyncGenerator[Piece, None]:
    """Yield pieces that are all available."""
    for piece in pieces:
        yield piece


async def following(
    executor: BlockingExecutor, ready: Callable[[int], ReadablePrefix | None], start: int, stop: int
) -> AsyncGenerator[Piece, None]:
    """Yield a range of a file that is still downloading, as its readable prefix grows."""
    position = start
    while position < stop:
        found = await executor.call(partial(ready, position))
        # A missing file was committed since `ready` answered, which renamed it: the next poll finds its new path.
        opened = None if found is None else _opened(found.path)
        if found is None or opened is None:
            yield b""
            await asyncio.sleep(_POLL_SECONDS)
            continue
        # By descriptor, because a commit may rename the file before the piece is sent.
        with opened as file:
            until = min(found.stop, stop)
            yield FilePiece(Path(f"/proc/self/fd/{file.fileno()}"), ByteRange(position, until))
        position = until


def _opened(path: Path) -> FileIO | None:
    try:
        return FileIO(open_plain(path), "rb")
    # Evicted since it was looked up.
    except FileNotFoundError:
        return None


async def relay(
    executor: BlockingExecutor, opening: AbstractContextManager[BlobStream]
) -> AsyncGenerator[Piece, None]:
    """Yield the bytes of a stream as they arrive. The stream is opened and read in threads."""
    stream = await executor.call(opening.__enter__)
    buffer = memoryview(bytearray(_RELAY_BUFFER))
    try:
        while count := await executor.call(lambda: stream.readinto(buffer)):
            yield bytes(buffer[:count])
    finally:
        stream.close()
        await executor.call(lambda: opening.__exit__(None, None, None))


def hang_up(request: web.Request) -> None:
    """Abort the connection of a response that can't be completed, so that the client sees a short body."""
    if request.transport is not None:
        request.transport.abort()


async def _flush(answer: web.StreamResponse, pending: bytearray) -> None:
    if pending:
        await answer.write(bytes(pending))
        pending.clear()


def _read(piece: FilePiece) -> bytes:
    with FileIO(open_plain(piece.path), "rb") as file:
        data = os.pread(file.fileno(), len(piece.wanted), piece.wanted.start)
    if len(data) != len(piece.wanted):
        raise OSError(f"{piece.path} is shorter than it was")
    return data


async def _send_file(request: web.Request, answer: web.StreamResponse, piece: FilePiece) -> None:
    loop = asyncio.get_running_loop()
    with FileIO(open_plain(piece.path), "rb") as file:
        # sendfile blocks the event loop on pages that aren't in memory, so they are read ahead.
        os.posix_fadvise(file.fileno(), piece.wanted.start, _READAHEAD, os.POSIX_FADV_WILLNEED)
        # asyncio's sendfile raises RuntimeError for a closing transport; this is the client's doing, not a bug.
        if request.transport is None or request.transport.is_closing():
            raise ClientGone("the client hung up")
        with _corked(request.transport):
            start, size = piece.wanted.start, len(piece.wanted)
            sent = await loop.sendfile(request.transport, file, start, size)
    if sent != len(piece.wanted):
        raise OSError(f"{piece.path} is shorter than it was")


@contextmanager
def _corked(transport: asyncio.Transport) -> Iterator[None]:
    """Send only full segments, and the rest at the end (TCP_CORK, tcp(7)). Without it sendfile costs a third more."""
    connection = transport.get_extra_info("socket")
    if _TCP_CORK is None or connection is None or connection.family not in _INTERNET:
        yield
        return
    connection.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, 1)
    try:
        yield
    finally:
        with suppress(OSError):  # the client closed the connection
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_CORK, 0)

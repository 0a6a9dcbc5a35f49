"""The HTTP API for peers, see docs/peers.md. Read-only; signatures are verified before anything is looked up.

GET /v1/files/{sha256}/{identity}            -> which chunks of a file are here, JSON
GET /v1/files/{sha256}/{identity}/chunks/{n} -> a chunk, or a range of it
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

from aiohttp import web

from cache_agent.node.threads import BlockingExecutor
from cache_agent.observability.events import Events, PeerRequestRefused, PeerSent
from cache_agent.peers.rate import GRACE_SECONDS, MIN_RATE
from cache_agent.peers.request_signatures import Replayed, SignedRequest, Verifier, WrongClock
from cache_agent.servers.peers.servable_chunks import ServableChunks, ServableRange
from cache_agent.servers.sender import FilePiece, Piece, answer_of, deliver, hang_up
from cache_agent.sources.throttle import Throttle
from cache_agent.store.disk import open_plain
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound, WeightyardError
from modelimage.ranges import ByteRange

_ADDRESS: Final = re.compile(
    r"/v1/files/([0-9a-f]{64})/([0-9a-f]{64})(?:/chunks/(0|[1-9][0-9]{0,9}))?"
)
# The unit of the upload cap and of a slow peer's deadline.
_SLICE: Final = 4 << 20
# Seconds until a peer may retry when all upload slots are taken; our client accepts fractions.
_BUSY: Final = {"Retry-After": "0.25"}


def slice_timeout(size: int) -> float:
    """Seconds in which a peer must take `size` bytes. The client has the same limit: a slower peer gives up as well."""
    return GRACE_SECONDS + size / MIN_RATE


@dataclass
class PeersApi:
    """Serves chunks to peers: at most `uploads` concurrently, together at the throttle's rate.

    A peer that doesn't take a slice of a chunk within `slice_timeout` loses its upload slot.
    """

    offers: ServableChunks
    verifier: Verifier
    executor: BlockingExecutor
    events: Events
    throttle: Throttle
    uploads: int
    slice_timeout: Callable[[int], float] = slice_timeout
    _uploading: int = field(default=0, init=False)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        requested = SignedRequest(
            request.method, request.raw_path, request.headers.get("Range", "")
        )
        try:
            # First of all, so that unsigned requests learn nothing about this node.
            sender = self.verifier.verify(request.headers.get("Authorization"), requested)
        except AccessDenied as error:
            self.events.emit(PeerRequestRefused(_why(error)))
            return web.Response(status=401, text=error.message)
        if request.method != "GET":
            return web.Response(status=405, text="only GET", headers={"Allow": "GET"})
        return await self._answer(request, sender)

    async def _answer(self, request: web.Request, sender: str) -> web.StreamResponse:
        address = _ADDRESS.fullmatch(request.raw_path)
        if address is None:
            return web.Response(status=404, text="no such address")
        try:
            names = Digest(address[1]), Digest(address[2])
            offer = await self.executor.call(lambda: self.offers.find(*names))
            if address[3] is None:
                return web.Response(body=offer.have.to_bytes(), content_type="application/json")
            return await self._chunk(request, sender, names[0], offer, int(address[3]))
        except NotFound as error:
            return web.Response(status=404, text=error.message)
        except WeightyardError as error:
            return web.Response(status=500, text=error.message)
        except OSError:
            # The file was moved or removed after the lookup: a retry looks it up again.
            return web.Response(status=503, headers=_BUSY)

    async def _chunk(
        self, request: web.Request, sender: str, digest: Digest, offer: ServableRange, index: int
    ) -> web.StreamResponse:
        chunk = offer.chunk(index)
        # Needs no lock: only the event loop counts, and there is no await before the increment.
        if self._uploading >= self.uploads:
            return web.Response(status=503, text="too many requests at once", headers=_BUSY)
        headers = {"Content-Type": "application/octet-stream"}
        answer, wanted = answer_of(request, len(chunk), f'"{digest.hex}-{index}"', headers)
        if wanted is None:
            return answer
        self._uploading += 1
        try:
            requested = ByteRange(chunk.start + wanted.start, chunk.start + wanted.stop)
            # Without a deadline at first: `_pieces` sets one for each slice.
            async with asyncio.timeout(None) as limit:
                pieces = self._pieces(offer, requested, limit)
                await deliver(request, answer, pieces, self.offers.store.files.hold([digest]))
        except TimeoutError:
            hang_up(request)
            return answer
        finally:
            self._uploading -= 1
        self.events.emit(PeerSent(sender, len(wanted)))
        return answer

    async def _pieces(
        self, offer: ServableRange, requested: ByteRange, limit: asyncio.Timeout
    ) -> AsyncGenerator[Piece, None]:
        """Yield the range in slices; each passes the throttle and gets its own deadline.

        The deadline excludes the throttle's pause, which isn't the peer's fault. The file stays open, because a
        download may be committed, and so renamed, while it is sent.
        """
        clock = asyncio.get_running_loop().time
        with FileIO(open_plain(offer.path), "rb") as file:
            opened = Path(f"/proc/self/fd/{file.fileno()}")
            for at in range(requested.start, requested.stop, _SLICE):
                piece = ByteRange(at, min(requested.stop, at + _SLICE))
                pause = self.throttle.take(len(piece))
                limit.reschedule(clock() + pause + self.slice_timeout(len(piece)))
                if pause:
                    await asyncio.sleep(pause)
                yield FilePiece(opened, piece)


def _why(error: AccessDenied) -> str:
    match error:
        case Replayed():
            return "replayed"
        case WrongClock():
            return "clock"
        case _:
            return "signature"

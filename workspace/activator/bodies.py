"""Reads requests' bodies into memory within limits: of each, of all together, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from modelimage.errors import Busy, InvalidInput, TimedOut


class TooLarge(InvalidInput):
    """A body above the limit of one."""


class Bodies:
    """The bodies that are held: `each` bytes at most, `total` bytes together, read within `seconds`."""

    def __init__(self, *, each: int, total: int, seconds: float) -> None:
        self._each, self._total, self._seconds = each, total, seconds
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One body's share, which counts until the context ends."""
        share = Share()
        try:
            yield share
        finally:
            self.held -= share.held

    async def read(
        self, chunks: AsyncIterator[bytes], share: Share, *, length: int | None
    ) -> bytes:
        """A whole body. Raises TooLarge, Busy when all bodies together take too much, TimedOut for a slow client."""
        # Refused before the first byte if the client says so itself.
        self._check(length or 0, share)
        body = bytearray()
        try:
            # For the whole body: a client that sends a byte a second would hold its place for ever.
            async with asyncio.timeout(self._seconds):
                async for chunk in chunks:
                    # As bytes arrive, not as announced: a client that sends nothing must hold nothing.
                    self._check(len(body) + len(chunk), share)
                    self.held += len(chunk)
                    share.held += len(chunk)
                    body += chunk
        except TimeoutError as error:
            raise TimedOut(f"the request's body took more than {self._seconds:g} s") from error
        return bytes(body)

    def _check(self, size: int, share: Share) -> None:
        if size > self._each:
            raise TooLarge(f"the request's body is larger than {self._each} bytes")
        if self.held - share.held + size > self._total:
            raise Busy("the requests that wait already hold all the memory for bodies")


class Share:
    """What one body holds, in bytes."""

    def __init__(self) -> None:
        self.held = 0

"""The activator's memory under clients that mean no good: its container's limit holds, whatever they send."""

from __future__ import annotations

import asyncio
import gzip
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from modelimage.errors import Busy, TimedOut
from tests.servers.process import child_environment
from tests.workspace import samples
from workspace.activator.bodies import Bodies, TooLarge
from workspace.render.kubernetes import surrounding_objects
from workspace.render.routing import SystemSettings

ROOT = Path(__file__).parents[3]
MIB = 1 << 20
END = b"0\r\n\r\n"
_CLIENTS = 12


def memory_limit() -> int:
    """Bytes that the rendered container may use."""
    workspace = samples.workspace(scale={"min": 0, "max": 2})
    (deployment,) = (
        each
        for each in surrounding_objects(workspace, SystemSettings())
        if each["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * MIB


@contextmanager
def activator(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The real program without any server; its process id and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "weightyard.cli", "activator", "--listen", "127.0.0.1:0",
         "--upstream", "http://127.0.0.1:1"],
        cwd=ROOT, env=child_environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"listening on .*:(\d+)", said)
        assert found, said
        yield process.pid, int(found[1])
    finally:
        process.kill()
        process.communicate()


def peak(pid: int) -> int:
    """The most memory that a process has used, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", text)[1]) << 10  # type: ignore[index]


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def whole(size: int) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % size + bytes(size)


def chunked(size: int) -> bytes:
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + piece * (size // 0x10000) + END


def tiny_chunks(size: int) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (size // 100) + END


def compressed(size: int) -> bytes:
    body = gzip.compress(bytes(size * 20), compresslevel=1)
    return HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("made", [whole, chunked, tiny_chunks, compressed])
def test_peak_memory_stays_within_the_containers_limit(
    made: Callable[[int], bytes], tmp_path: Path
) -> None:
    data = made(8 * MIB)

    async def send(port: int) -> None:
        """Those that are held get no answer: there is no server. Others are refused, perhaps before the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with suppress(ConnectionError):
                for start in range(0, len(data), MIB):
                    writer.write(data[start : start + MIB])
                    await writer.drain()
                await reader.read(1)
            await asyncio.Event().wait()
        finally:
            writer.close()

    async def attack(port: int) -> None:
        senders = [asyncio.create_task(send(port)) for _ in range(_CLIENTS)]
        while await seen(port) < _CLIENTS:
            pass  # each question lets the senders go on
        for each in senders:
            each.cancel()
        await asyncio.gather(*senders, return_exceptions=True)

    with activator(tmp_path) as (pid, port):
        asyncio.run(attack(port))
        assert peak(pid) < memory_limit()


async def seen(port: int) -> int:
    """How many requests wait or were refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /activator/metrics HTTP/1.0\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    names = ("weightyard_activator_requests_waiting", "weightyard_activator_requests_refused_total")
    return sum(int(float(re.search(rf"^{name} (\S+)", page, re.M)[1])) for name in names)  # type: ignore[index]


async def chunks_of(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)


async def endless() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.Event().wait()


def test_what_bodies_hold_is_bounded_one_by_one_and_together() -> None:
    async def main() -> None:
        bodies = Bodies(each=10, total=15, seconds=86400)
        with bodies.share() as first, bodies.share() as second:
            assert await bodies.read(chunks_of(4, 6), first, length=None) == bytes(10)
            with pytest.raises(TooLarge):
                await bodies.read(chunks_of(11), second, length=None)
            with pytest.raises(TooLarge):
                await bodies.read(endless(), second, length=11)
            with pytest.raises(Busy):
                await bodies.read(chunks_of(3, 3), second, length=None)
            with pytest.raises(Busy):
                await bodies.read(endless(), second, length=6)
        assert bodies.held == 0
        with bodies.share() as third:
            assert await bodies.read(chunks_of(10), third, length=10) == bytes(10)

    asyncio.run(main())


def test_a_client_that_stops_sending_holds_nothing_for_ever() -> None:
    async def main() -> None:
        bodies = Bodies(each=10, total=10, seconds=0.01)
        with pytest.raises(TimedOut), bodies.share() as share:
            await bodies.read(endless(), share, length=None)
        assert bodies.held == 0

    asyncio.run(main())

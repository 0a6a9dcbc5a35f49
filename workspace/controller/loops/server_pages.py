"""Reads pages of servers in pods, and other answers that nobody here vouches for.

Nothing that they say leads elsewhere or takes much memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final, TypeVar

import aiohttp
from yarl import URL

from modelimage.errors import RemoteRefused, Unreachable, WeightyardError
from modelimage.trace_headers import TRACEPARENT, is_parent
from workspace.controller.observation.objects import container_ports, has_labels, is_ready
from workspace.controller.observation.revisions import version_id
from workspace.render import names

Json = dict[str, Any]
T = TypeVar("T")

logger = logging.getLogger(__name__)

# vLLM's metrics take 100 kB; parsing a whole page takes the event loop's time.
PAGE_BYTES: Final = 1 << 20
# Servers of one Workspace that are read at the same time: it may have hundreds.
AT_ONCE: Final = 32
_TIMEOUT: Final = aiohttp.ClientTimeout(total=2)
# A redirect would make the controller send requests that the tenant can't send itself.
_PLAIN: Final[Json] = {
    "allow_redirects": False, "headers": {"Accept-Encoding": "identity"}, "auto_decompress": False,
}  # fmt: skip


def ready_servers(objects: Iterable[Json], version: str) -> list[Json]:
    """The pods of a version's ready servers, among a Workspace's objects."""
    wanted = {names.ROLE: names.SERVER, names.REVISION: version_id(version)}
    return [
        each
        for each in objects
        if each["kind"] == "Pod" and is_ready(each) and has_labels(each, wanted)
    ]


def server_urls(pod: Json) -> list[str]:
    """The URLs of a pod, at its own version's port; none before it has an address."""
    address = (pod.get("status") or {}).get("podIP")
    return [f"http://{_host(address)}:{port}" for port in container_ports(pod["spec"]) if address]


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@dataclass(frozen=True, slots=True)
class Page:
    """A page's text, and the `traceparent` that came with it; empty for none that can be one."""

    text: str
    trace: str


async def read_page(session: aiohttp.ClientSession, url: str) -> str:
    """A page as text. Raises RemoteRefused, Unreachable."""
    return (await read_answer(session, url)).text


async def read_metrics(
    session: aiohttp.ClientSession, pod: Json, parse: Callable[[str], T], places: asyncio.Semaphore
) -> T | None:
    """What a server's metrics say, by the first of its pages that can be read; None while there is none."""
    for url in server_urls(pod):
        try:
            async with places:
                return parse(await read_page(session, f"{url}/metrics"))
        except WeightyardError as error:
            logger.debug("%s: %s", url, error.message)
    return None


async def read_answer(session: aiohttp.ClientSession, url: str) -> Page:
    """A page. Raises RemoteRefused, Unreachable."""
    status, data, trace = await _exchange(
        session.get(url, timeout=_TIMEOUT, **_PLAIN), url, PAGE_BYTES
    )
    if status != 200:
        raise RemoteRefused(f"{url} answers {status}")
    return Page(data.decode(errors="replace"), trace if is_parent(trace) else "")


async def post_json(
    session: aiohttp.ClientSession, url: str, document: Json, *, most: int, seconds: float
) -> tuple[int, bytes]:
    """What a server answers to a JSON document: its status, and at most `most` bytes, complete within `seconds`.

    Raises RemoteRefused, Unreachable.
    """
    timeout = aiohttp.ClientTimeout(total=seconds)
    request = session.post(url, json=document, timeout=timeout, **_PLAIN)
    status, data, _ = await _exchange(request, url, most)
    return status, data


async def get_answer(
    session: aiohttp.ClientSession, url: str, *, headers: Mapping[str, str], most: int, seconds: float,
    tls: SSLContext | None = None,
) -> tuple[int, bytes]:  # fmt: skip
    """What a server answers to a request with these headers: its status, and at most `most` bytes.

    `tls` None trusts the system's authorities. Raises RemoteRefused, Unreachable.
    """
    sent = {**_PLAIN, "headers": {**_PLAIN["headers"], **headers}}
    timeout = aiohttp.ClientTimeout(total=seconds)
    # Quoted already. yarl would decode it and quote it again by rules of its own.
    request = session.get(URL(url, encoded=True), timeout=timeout, ssl=tls or True, **sent)
    # Messages leave the query out: it is a tenant's, and long.
    status, data, _ = await _exchange(request, url.partition("?")[0], most)
    return status, data


async def _exchange(request: Any, url: str, most: int) -> tuple[int, bytes, str]:
    """The answer's status and body, and its `traceparent`."""
    try:
        async with request as answer:
            # Nothing is unpacked here, where a few kilobytes could become gigabytes.
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise RemoteRefused(f"{url} sent a compressed answer that wasn't requested")
            # Counted as it arrives: what the server says of its length may be missing, or wrong.
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > most:
                    raise RemoteRefused(f"the answer of {url} is longer than {most} bytes")
            return answer.status, bytes(data), answer.headers.get(TRACEPARENT, "")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(f"{url} doesn't answer: {error}") from error

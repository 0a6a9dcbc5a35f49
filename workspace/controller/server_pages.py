"""Reads pages of servers in pods. They belong to tenants: nothing they answer leads elsewhere or takes much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from modelimage.errors import RemoteRefused, Unreachable
from modelimage.trace_headers import TRACEPARENT, is_parent
from workspace.controller.objects import container_ports

Json = dict[str, Any]

# vLLM's metrics take 100 kB; parsing a whole page takes the event loop's time.
PAGE_BYTES: Final = 1 << 20
_TIMEOUT: Final = aiohttp.ClientTimeout(total=2)


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


async def read_answer(session: aiohttp.ClientSession, url: str) -> Page:
    """A page. Raises RemoteRefused, Unreachable."""
    # A redirect would make the controller send requests that the tenant can't send itself.
    request = session.get(
        url, timeout=_TIMEOUT, allow_redirects=False,
        headers={"Accept-Encoding": "identity"}, auto_decompress=False,
    )  # fmt: skip
    try:
        async with request as answer:
            if answer.status != 200:
                raise RemoteRefused(f"{url} answers {answer.status}")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise RemoteRefused(f"{url} sent a compressed answer that wasn't requested")
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > PAGE_BYTES:
                    raise RemoteRefused(f"the answer of {url} is longer than {PAGE_BYTES} bytes")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(f"{url} doesn't answer: {error}") from error
    trace = answer.headers.get(TRACEPARENT, "")
    return Page(data.decode(errors="replace"), trace if is_parent(trace) else "")

"""The settings of connections, apart from what makes them: commands that may need no registry import this alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelimage.proxies import environment_proxy
from modelimage.registry.exchange import WebOrigin


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Trusted authorities: the system's and those in `ca_file`; without `verify`, certificates aren't checked."""

    ca_file: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds: to connect, without any progress, for a whole answer that isn't streamed, and for the response to a
    finished upload (registries copy it).
    """

    connect: float = 10.0
    stall: float = 10.0
    answer: float = 60.0
    finish: float = 300.0


def proxy_of(origin: WebOrigin) -> str | None:
    """The proxy for an origin according to the environment."""
    return environment_proxy(origin.scheme, origin.host, origin.port)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port and brackets, refers to this machine."""
    if host == "localhost" or host.endswith(".localhost") or host == "::1":
        return True
    parts = host.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isdigit() for part in parts)

"""Ports for programs that can't bind port 0 and tell which one they got.

Between the choice of a port and its use lie seconds in which nobody holds it. So a port is chosen where the kernel
gives none to outgoing connections, each once in a process, and by each of the tests' workers in a part of its own.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LOWEST = 10_000
PARTS = 16
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now, and that nobody else is given or gets by chance for a long time."""
    for port in _OFFERED:
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the offered ports are endless")


def offered(lowest_ephemeral: int, *, worker: int, start: int) -> Iterator[int]:
    """The ports of a worker's part below the kernel's own, round and round, from the one at `start`."""
    size = (lowest_ephemeral - LOWEST) // PARTS
    if size < 1:
        return itertools.repeat(0)  # the kernel gives away nearly all ports: it may choose
    first = LOWEST + worker % PARTS * size
    return (first + each % size for each in itertools.count(start))


def _worker() -> int:
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


_OFFERED = offered(int(_EPHEMERAL.read_text().split()[0]), worker=_worker(), start=os.getpid())

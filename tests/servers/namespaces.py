"""Network namespaces that stand for machines, whose only interface leads to each other."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.servers.process import ContextServer, program

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h
_numbers = itertools.count(1)


class TwoMachines(ContextServer):
    """Two namespaces, joined by a cable. Needs root. Ports and addresses in them are nobody else's."""

    ADDRESSES = ("10.77.0.1", "10.77.0.2")

    def _start(self, stack: ExitStack) -> None:
        made = f"wy-{os.getpid()}-{next(_numbers)}"
        self.names = (f"{made}-a", f"{made}-b")
        for name in self.names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
        first, second = self.names
        _ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)  # fmt: skip
        for name, address in zip(self.names, self.ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")
            # Programs find their own address by the way that packets would take to anywhere.
            _ip("-n", name, "route", "add", "default", "dev", "eth0")

    def command(self, machine: int, *words: str) -> list[str]:
        """A command that runs on a machine."""
        return [program("ip"), "netns", "exec", self.names[machine], *words]

    @contextlib.contextmanager
    def on(self, machine: int) -> Iterator[None]:
        """Sockets that this thread makes in the context are a machine's."""
        with Path("/proc/thread-self/ns/net").open() as own:
            with Path("/var/run/netns", self.names[machine]).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    subprocess.run([program("ip"), *words], check=True, capture_output=True)

"""Opens TCP sockets to listen on. An address that is taken is an error that names who has it.

Linux only: the holder is looked up in /proc, where it shows the processes of other users to root alone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelimage.errors import Busy, InvalidInput

_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"  # TCP_LISTEN, see proc_net_tcp in the kernel's documentation
_LINE_BYTES: Final = 60  # of a command line in a message


def listen_tcp(
    host: str, port: int, *, option: str = "another port", backlog: int = 128
) -> socket.socket:
    """A socket that listens; port 0 takes a free one. `option` is what chooses another address, for the hint.

    Raises Busy when the address is taken, InvalidInput when this process can't listen there.
    """
    server = _bound(host, port, option)
    server.listen(backlog)
    return server


def check_free(host: str, port: int, *, option: str = "another port") -> None:
    """Raises as `listen_tcp`, and leaves the address free."""
    _bound(host, port, option).close()


def holder_of(port: int) -> str | None:
    """Who listens on a TCP port here, as "`python` (pid 7)"; None when nobody does or /proc doesn't show it."""
    inodes = {inode for family in ("tcp", "tcp6") for inode in _listeners(family, port)}
    for pid in _pids() if inodes else ():
        if any(_inode(link) in inodes for link in _links(pid)):
            return f"{_program(pid)} (pid {pid})"
    return None


def _bound(host: str, port: int, option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # Otherwise a port with connections in TIME_WAIT would count as taken.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # Only IPv6: other programs may have the same port of IPv4.
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        server.bind((host, port))
    except OSError as error:
        server.close()
        raise _refused(host, port, option, error) from error
    return server


def _refused(host: str, port: int, option: str, error: OSError) -> Busy | InvalidInput:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        who = f" by {holder}" if holder else ""
        return Busy(
            f"port {port} of {host} is taken{who}",
            hint=f"Stop {'it' if holder else 'what listens there'}, or choose {option}.",
        )
    if error.errno == errno.EACCES:
        return InvalidInput(
            f"this user may not listen on port {port} of {host}",
            hint=f"Ports below 1024 are root's: choose {option}.",
        )
    return InvalidInput(
        f"can't listen on {host}, port {port}: {error.strerror or error}",
        hint=f"Name an address of this machine, or choose {option}.",
    )


def _listeners(family: str, port: int) -> Iterator[str]:
    """The inodes of sockets that listen on a port, from /proc/net/tcp or tcp6."""
    try:
        lines = (_PROC / "net" / family).read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        # The kernel writes a port as four hexadecimal digits in upper case.
        if len(fields) > 9 and fields[3] == _LISTENS and fields[1].endswith(f":{port:04X}"):
            yield fields[9]


def _pids() -> list[int]:
    return sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _links(pid: int) -> Iterator[str]:
    # A process may end, or be another user's.
    with suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                yield str(entry.readlink())


def _inode(link: str) -> str | None:
    return link[len("socket:[") : -1] if link.startswith("socket:[") else None


def _program(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "another program"
    line = " ".join(word for word in words if word)
    shown = "".join(each if each.isprintable() else "?" for each in line[:_LINE_BYTES])
    return f"`{shown}{'…' if len(line) > _LINE_BYTES else ''}`"

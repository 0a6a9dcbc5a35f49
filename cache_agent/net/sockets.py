"""Unix sockets at paths of any length. The kernel limits paths to 107 bytes; a store's root may be longer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelimage.errors import NotWritable


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short alias of a socket's path, through an open descriptor of its directory. Valid while inside."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path) -> socket.socket:
    """A listening socket with mode 0600; replaces the socket of an agent that crashed. Raises NotWritable."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        with short_path(path) as name:
            server.bind(name)
        # Before `listen`: nobody can connect until then.
        path.chmod(0o600)
        server.listen(64)
    except OSError as error:
        server.close()
        raise NotWritable(f"can't listen on {path}: {error.strerror}") from error
    server.setblocking(False)
    return server


def is_listening(path: Path) -> bool:
    """Whether a process accepts connections at a unix socket."""
    try:
        # On a busy machine a full queue of connections is waited for; nobody else is.
        connect(path, 600.0).close()
    except OSError:
        return False
    return True


def connect(path: Path, timeout: float | None) -> socket.socket:
    """A connected socket. Raises OSError."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(timeout)
    try:
        with short_path(path) as name:
            client.connect(name)
    except OSError:
        client.close()
        raise
    return client

"""Nodes over in-memory images, each ended by the checker; and what makes tests independent of the machine's mood."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache_agent.peers.peer_source import PeerSource
from tests.cache_agent.nodes import NodeFactory
from tests.cache_agent.peers.serving import peer_source, serving

HOUR = 3600.0
MEMORY = "/dev/shm"  # noqa: S108 - a place in memory, not a name in it
MEMORY_BYTES = 512 << 20  # several times what such a test takes: some run side by side
# How long this process waits for an answer of a server beside it, which a busy machine may need any time for.
PATIENCE = (
    "cache_agent.servers.csi.mount_client._SECONDS",
    "cache_agent.prewarm.cri._STATUS_SECONDS",
)


@pytest.fixture(autouse=True, scope="package")
def no_kubelet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A kubelet on this machine keeps none of the tests' pods, so its leases would end."""
    with pytest.MonkeyPatch.context() as patched:
        none = tmp_path_factory.mktemp("no-kubelet") / "kubelet"
        patched.setattr("cache_agent.leases.holders.KUBELET", none)
        yield


@pytest.fixture(autouse=True, scope="package")
def patience() -> Iterator[None]:
    """Waits that end: a hang is for the tests' own watch to find."""
    with pytest.MonkeyPatch.context() as patched:
        for name in PATIENCE:
            patched.setattr(name, HOUR)
        yield


@pytest.fixture
def deserted() -> Iterator[str]:
    """HOST:PORT of this machine that refuses every connection: the port is taken, so that nobody else listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def memory_root() -> Iterator[Path]:
    """An empty directory in memory, where an fsync costs nothing: for tests that open stores by the hundred.

    On the disk where there is no such memory, or too little, as in most containers.
    """
    fits = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    with tempfile.TemporaryDirectory(prefix="wy-", dir=MEMORY if fits else None) as path:
        yield Path(path)


@pytest.fixture
def open_node(root: Path) -> Iterator[NodeFactory]:
    """Opens nodes on `root`; at the end all are closed and the store is proven sound."""
    with ExitStack() as stack:
        factory = NodeFactory(root, stack)
        yield factory
    factory.check()


@pytest.fixture
def peer_of() -> Iterator[Callable[..., PeerSource]]:
    """Makes a source of a node in this process, which answers peers until the test ends."""
    with ExitStack() as stack:
        yield lambda node, **options: peer_source(stack.enter_context(serving(node, **options)))

"""Nodes over in-memory images, each ended by the checker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache_agent.peers.source import PeerSource
from tests.cache_agent.nodes import NodeFactory
from tests.cache_agent.peers.serving import peer_source, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def memory_root() -> Iterator[Path]:
    """An empty directory in memory, where an fsync costs nothing: for tests that open stores by the hundred."""
    with tempfile.TemporaryDirectory(prefix="wy-", dir="/dev/shm") as path:
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

"""How a node stands with what is wanted, as a document: for an agent that reports, and for a command without one."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cache_agent.api.document import API_VERSION, Metadata
from cache_agent.api.node_cache import KIND, NodeCache, NodeCacheSpec, NodeCacheStatus, NodeFacts
from cache_agent.node import Node
from cache_agent.wanted.folder import Folder
from cache_agent.wanted.report import View, status
from cache_agent.wanted.stock import take_stock
from cache_agent.wanted.values import Verdict, Wish

FOLDER: Final = "wanted"
_MEBI: Final = 1 << 20


def node_cache(name: str, status: NodeCacheStatus) -> NodeCache:
    """The document that says how a node stands."""
    return NodeCache(
        api_version=API_VERSION,
        kind=KIND,
        metadata=Metadata(name=name),
        spec=NodeCacheSpec(node=name),
        status=status,
    )


def node_name() -> str:
    """What this node is called: NODE_NAME, which the chart sets, else the host's name, as Kubernetes would spell it."""
    return (os.environ.get("NODE_NAME") or platform.node()).lower().replace("_", "-")


def folder_of(path: Path | None, root: Path) -> Folder:
    """Where what is wanted stands without a cluster."""
    return Folder(path or root / FOLDER)


def node_facts() -> NodeFacts:
    """What this machine is."""
    try:
        agent = version("weightyard")
    except PackageNotFoundError:
        agent = "unknown"  # run from a source tree
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return NodeFacts(
        architecture=platform.machine(),
        kernel=platform.release(),
        agent_version=agent,
        memory=pages // _MEBI * _MEBI,
    )


def status_without_agent(node: Node) -> NodeCache:
    """What the store holds of what its own directory wants, while nobody works on it. Raises DiskFailed."""
    found = folder_of(None, node.store.first.paths.root).read()
    wishes = [Wish.of(model) for model in found.models.values()]
    view = View(
        facts=node_facts(),
        stock=take_stock(node.store, node.clock()),
        now=node.clock(),
        synced=True,
        problems=found.problems,
        wishes=wishes,
        verdicts={wish.name: _verdict(node, wish) for wish in wishes},
    )
    return node_cache(node_name(), status(view, NodeCacheStatus()))


def _verdict(node: Node, wish: Wish) -> Verdict:
    held = node.store.resolved(wish.target.image, wish.target.variant)
    if held is not None:
        return Verdict("Ready", key=held[0].key)
    return Verdict("Pending", "NoAgent", "no agent runs here: start `weightyard agent`")

"""How a node stands with what is wanted, as a document: for an agent that reports, and for a command without one."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cache_agent.api.document import API_VERSION, Metadata
from cache_agent.api.node_cache import KIND, NodeCache, NodeCacheSpec, NodeCacheStatus, NodeFacts
from cache_agent.node.node import Node
from cache_agent.prewarm.directory_source import DirectorySource
from cache_agent.prewarm.inventory import take_inventory
from cache_agent.prewarm.report import View, status
from cache_agent.prewarm.values import DesiredModel, Outcome

FOLDER: Final = "prewarm"
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


def folder_of(path: Path | None, root: Path) -> DirectorySource:
    """Where what is wanted stands without a cluster."""
    return DirectorySource(path or root / FOLDER)


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
    desired_models = [DesiredModel.of(model) for model in found.models.values()]
    view = View(
        facts=node_facts(),
        inventory=take_inventory(node.store, node.clock()),
        now=node.clock(),
        synced=True,
        problems=found.problems,
        desired_models=desired_models,
        outcomes={desired.name: _outcome(node, desired) for desired in desired_models},
    )
    return node_cache(node_name(), status(view, NodeCacheStatus()))


def _outcome(node: Node, desired: DesiredModel) -> Outcome:
    held = node.store.resolved(desired.target.image, desired.target.variant)
    if held is not None:
        return Outcome("Ready", key=held[0].key)
    return Outcome("Pending", "NoAgent", "no agent runs here: start `weightyard agent`")

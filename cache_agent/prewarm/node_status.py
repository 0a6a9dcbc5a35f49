"""Builds the NodeCache document, for agents that report it and for commands that run without an agent."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cache_agent.api.kube_objects import API_VERSION, Metadata
from cache_agent.api.node_cache import KIND, NodeCache, NodeCacheSpec, NodeCacheStatus, NodeFacts
from cache_agent.net.node_name import node_name
from cache_agent.node.desired_detail import DesiredDetail, DesiredDetails
from cache_agent.prewarm.directory_source import DirectorySource
from cache_agent.prewarm.inventory import take_inventory
from cache_agent.prewarm.report import NodeReportInput, status
from cache_agent.prewarm.values import DesiredModel, ModelOutcome
from cache_agent.store.paths import StorePaths
from cache_agent.store.roots import Roots
from modelimage.installation import installed_version

_MEBI: Final = 1 << 20


def node_cache(name: str, status: NodeCacheStatus) -> NodeCache:
    """The NodeCache document with a status."""
    return NodeCache(
        api_version=API_VERSION,
        kind=KIND,
        metadata=Metadata(name=name),
        spec=NodeCacheSpec(node=name),
        status=status,
    )


def folder_of(path: Path | None, root: Path) -> DirectorySource:
    """The source of the desired state without a cluster: `path`, else a directory below the store's root."""
    return DirectorySource(path or StorePaths(root).prewarm)


def node_facts() -> NodeFacts:
    """Facts about this machine: architecture, kernel, agent version, and memory in bytes, rounded down to whole MiB."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return NodeFacts(
        architecture=platform.machine(),
        kernel=platform.release(),
        agent_version=installed_version(),
        memory=pages // _MEBI * _MEBI,
    )


def status_without_agent(store: Roots, clock: Callable[[], float]) -> NodeCache:
    """The NodeCache without an agent: which models of its own prewarm directory are stored. Raises DiskFailed.

    `clock` returns the wall time in seconds.
    """
    view = _view_without_agent(store, clock())
    return node_cache(node_name(), status(view, NodeCacheStatus()))


def details_without_agent(store: Roots, clock: Callable[[], float]) -> DesiredDetails:
    """What is told of the same desired models without an agent. Raises DiskFailed."""
    view = _view_without_agent(store, clock())
    desired = status(view, NodeCacheStatus()).desired
    return DesiredDetails([DesiredDetail(each) for each in desired], view.refused)


def _view_without_agent(store: Roots, now: float) -> NodeReportInput:
    found = folder_of(None, store.first.paths.root).read()
    desired_models = [DesiredModel.from_cached_model(model) for model in found.models.values()]
    return NodeReportInput(
        facts=node_facts(),
        inventory=take_inventory(store, now),
        now=now,
        synced=True,
        has_agent=False,
        refused=found.refused,
        desired_models=desired_models,
        outcomes={desired.name: _outcome(store, desired) for desired in desired_models},
    )


def _outcome(store: Roots, desired: DesiredModel) -> ModelOutcome:
    held = store.models.resolved(desired.target.image, desired.target.variant)
    if held is not None:
        return ModelOutcome("Ready", key=held[0].key)
    return ModelOutcome("Pending", "NoAgent", "no agent runs here: start `weightyard agent`")

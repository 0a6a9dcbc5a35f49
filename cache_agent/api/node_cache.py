"""The NodeCache document: one node's models and its progress towards the desired state. Only its agent writes it.

The controller reads it to set the node's labels and startup taint, and to sum up each CachedModel's status.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from cache_agent.api.cached_model import Tier
from cache_agent.api.kube_objects import (
    Condition,
    Count,
    Metadata,
    ObjectName,
    Reported,
    Strict,
    Timestamp,
)

KIND: Final = "NodeCache"
PLURAL: Final = "nodecaches"
# Ready: the agent runs and its store is sound. Synced: it follows the desired state. PinnedReady: the node holds every
# pinned model that selects it, verified. SpaceSufficient: all desired models fit.
CONDITIONS: Final = ("Ready", "Synced", "PinnedReady", "SpaceSufficient")

# Pending: not begun yet. Waiting: for its window, for space, or in the queue. Failed: will be retried.
DesiredModelState = Literal["Pending", "Waiting", "Fetching", "Warming", "Ready", "Failed"]
# Ready: complete and verified. Releasing: to be deleted once its node label is gone.
ModelState = Literal["Ready", "Releasing"]


class DesiredModelStatus(Reported):
    """The node's progress with one CachedModel. Sizes in bytes."""

    name: ObjectName = Field(description="The CachedModel's name.")
    uid: str = Field(default="", description="The CachedModel's UID, empty without a cluster.")
    observed_generation: Count = Field(
        default=0, description="The generation of the CachedModel that this reports on."
    )
    state: DesiredModelState
    reason: str = Field(default="", description="Why it is in this state, as one word.")
    message: str = Field(
        default="", description="The reason as a sentence, and what to do about it."
    )
    model_key: str | None = None
    image: str | None = Field(default=None, description="The image by digest, once known.")
    variant: str | None = None
    bytes_done: Count = 0
    bytes_total: Count | None = Field(default=None, description="Absent until it is known.")
    bytes_per_second: Count = 0
    seconds_left: Count | None = None
    tier: Tier | None = Field(
        default=None, description="Its current tier; absent until the node holds it."
    )
    pinned: bool = False
    verified_at: Timestamp | None = Field(
        default=None, description="The oldest verification among its files."
    )
    runtime_image: Literal["Pulling", "Present", "Failed", "Unsupported"] | None = Field(
        default=None, description="The state of its runtimeImage, if it has one."
    )


class Held(Reported):
    """A model that is complete on this node, desired or not. Sizes in bytes."""

    key: str = Field(description="The model's key, sha256:…")
    state: ModelState = "Ready"
    image: str
    variant: str
    size: Count
    tier: Tier = "disk"
    pinned: bool = False
    leases: Count = Field(default=0, description="Pods and processes that use it.")
    verified_at: Timestamp | None = None


class Space(Reported):
    """The store's space, in bytes."""

    total: Count = Field(default=0, description="Bytes that the store may use.")
    used: Count = 0
    free: Count = Field(default=0, description="Bytes that it can still take without evicting.")
    evictable: Count = 0
    used_shown: str | None = Field(default=None, description="The used bytes for people: 812Gi.")
    free_shown: str | None = Field(default=None, description="The free bytes for people.")


class NodeFacts(Reported):
    """Facts about the node."""

    architecture: str = ""
    kernel: str = ""
    agent_version: str = ""
    memory: Count = Field(default=0, description="Bytes of memory that the node has.")
    read_bytes_per_second: Count | None = Field(
        default=None,
        description="The rate at which models were last read from its store; absent until measured.",
    )


class NodeCacheSpec(Strict):
    """The node that the cache is on. Never changes."""

    node: ObjectName = Field(description="The node's name; the object has the same name.")


class NodeCacheStatus(Reported):
    """The agent's report."""

    observed_generation: Count = 0
    conditions: tuple[Condition, ...] = ()
    node: NodeFacts = NodeFacts()
    space: Space = Space()
    held: Annotated[
        str | None, Field(description="Desired models held, of all desired models: 3/5.")
    ] = None
    desired: tuple[DesiredModelStatus, ...] = Field(
        default=(), max_length=4096, description="The CachedModels that select this node."
    )
    models: tuple[Held, ...] = Field(
        default=(), max_length=4096, description="The models that this node holds."
    )


class NodeCache(Reported):
    """A NodeCache. Law: `model_validate(n.to_document()) == n`."""

    api_version: Literal["weightyard.dev/v1alpha1"]
    kind: Literal["NodeCache"]
    metadata: Metadata
    spec: NodeCacheSpec
    status: NodeCacheStatus = NodeCacheStatus()

    @property
    def name(self) -> str:
        return self.metadata.name

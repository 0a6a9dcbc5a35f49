"""The NodeCache document: one node's models and its progress towards the desired state. Only its agent writes it.

The controller reads it to set the node's labels and startup taint, and to sum up each CachedModel's status.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, Literal

from pydantic import Field

from cache_agent.api.cached_model import Tier
from cache_agent.api.kube_objects import (
    GENERATION,
    Conditions,
    Count,
    Metadata,
    ObjectName,
    Reported,
    ReportedLine,
    ReportedText,
    Strict,
    Timestamp,
)

KIND: Final = "NodeCache"
PLURAL: Final = "nodecaches"
# Ready: the agent runs and its store is sound. Synced: it follows the desired state. PinnedReady: the node holds every
# pinned model that selects it, verified. SpaceSufficient: all desired models fit.
CONDITIONS: Final = ("Ready", "Synced", "PinnedReady", "SpaceSufficient")

# Sources named of one fetch. Those of a large cluster are many, and each change of them is a write.
MOST_SOURCES: Final = 4
# What is reported of a node's eviction order: people ask which model is the next, and every node writes them.
MOST_VICTIMS: Final = 3

# Pending: not begun yet. Waiting: for its window, for space, or in the queue. Failed: will be retried.
DesiredModelState = Literal["Pending", "Waiting", "Fetching", "Warming", "Ready", "Failed"]
# Ready: complete and verified. Releasing: to be deleted once its node label is gone.
ModelState = Literal["Ready", "Releasing"]


class DesiredModelStatus(Reported):
    """The node's progress with one CachedModel. Sizes in bytes."""

    name: ObjectName = Field(description="The CachedModel's name.")
    uid: ReportedLine = Field(
        default="", description="The CachedModel's UID, empty without a cluster."
    )
    observed_generation: Count = Field(
        default=0, description="The generation of the CachedModel that this reports on."
    )
    state: DesiredModelState = Field(
        description=(
            "Pending has not begun. Waiting is for its window, for space or in the queue. Warming is into memory. "
            "Failed is tried again."
        )
    )
    reason: ReportedLine = Field(default="", description="Why it is in this state, as one word.")
    message: ReportedText = Field(
        default="", description="The reason as a sentence, and what to do about it."
    )
    model_key: ReportedLine | None = Field(
        default=None, description="The digest that names the model in the store, once known."
    )
    image: ReportedLine | None = Field(default=None, description="The image by digest, once known.")
    variant: ReportedLine | None = Field(
        default=None, description="The variant of the image, once known, such as bf16 or int4."
    )
    bytes_done: Count = Field(default=0, description="Bytes that are in the store, verified.")
    bytes_total: Count | None = Field(
        default=None, description="The model's size in bytes; absent until it is known."
    )
    bytes_per_second: Count = Field(default=0, description="Bytes a second that arrive now.")
    seconds_left: Count | None = Field(
        default=None,
        description="Seconds until it is complete, at the current rate; absent if unknown.",
    )
    sources: tuple[ReportedLine, ...] = Field(
        default=(),
        max_length=MOST_SOURCES,
        description="Where its bytes come from while it is fetched: a tier and a source, such as `peer gpu-2`.",
    )
    tier: Tier | None = Field(
        default=None, description="Its current tier; absent until the node holds it."
    )
    pinned: bool = Field(default=False, description="Whether it is kept from eviction.")
    verified_at: Timestamp | None = Field(
        default=None, description="The oldest verification among its files."
    )
    runtime_image: Literal["Pulling", "Present", "Failed", "Unsupported"] | None = Field(
        default=None, description="The state of its runtimeImage, if it has one."
    )


class Held(Reported):
    """A model that is complete on this node, desired or not. Sizes in bytes."""

    key: ReportedLine = Field(description="The model's key, sha256:…")
    state: ModelState = Field(
        default="Ready",
        description="Ready is complete and verified. Releasing is deleted once the node's label is gone.",
    )
    image: ReportedLine = Field(description="The image by digest.")
    variant: ReportedLine = Field(description="The variant of the image, such as bf16 or int4.")
    size: Count = Field(description="Its size in bytes.")
    tier: Tier = Field(
        default="disk", description="memory if the page cache has it too, else disk."
    )
    pinned: bool = Field(default=False, description="Whether it is kept from eviction.")
    leases: Count = Field(default=0, description="Pods and processes that use it.")
    verified_at: Timestamp | None = Field(
        default=None, description="The oldest verification among its files."
    )


class NextVictim(Reported):
    """A model that would be evicted next, and what its turn follows from."""

    key: ReportedLine = Field(description="The model's key, sha256:…")
    frees: Count = Field(
        description="Bytes that this frees, after those before it; files shared with another model stay."
    )
    uses: Count = Field(default=0, description="How often it was used; uses long ago count less.")
    last_used: Timestamp | None = Field(default=None, description="When it was last used.")
    fetch_seconds: Count | None = Field(
        default=None, description="Seconds that it took to fetch; absent if unknown."
    )


class Space(Reported):
    """The store's space, in bytes."""

    total: Count = Field(default=0, description="Bytes that the store may use.")
    used: Count = Field(default=0, description="Bytes that its models take.")
    free: Count = Field(default=0, description="Bytes that it can still take without evicting.")
    evictable: Count = Field(
        default=0, description="Bytes that eviction can free: neither leased nor pinned."
    )
    used_shown: ReportedLine | None = Field(
        default=None, description="The used bytes for people: 812Gi."
    )
    free_shown: ReportedLine | None = Field(
        default=None, description="The free bytes for people: 1.2Ti."
    )


class NodeFacts(Reported):
    """Facts about the node."""

    architecture: ReportedLine = Field(
        default="", description="The processor's architecture, such as x86_64."
    )
    kernel: ReportedLine = Field(default="", description="The version of the Linux kernel.")
    agent_version: ReportedLine = Field(default="", description="The agent's version.")
    memory: Count = Field(default=0, description="Bytes of memory that the node has.")
    read_bytes_per_second: Count | None = Field(
        default=None,
        description="Bytes a second at which models were last read from its store; absent until measured.",
    )


class NodeCacheSpec(Strict):
    """The node that the cache is on. Never changes."""

    node: ObjectName = Field(description="The node's name; the object has the same name.")


class NodeCacheStatus(Reported):
    """The agent's report."""

    observed_generation: Count = Field(default=0, description=GENERATION)
    conditions: Conditions = ()
    node: NodeFacts = NodeFacts()
    space: Space = Space()
    held: ReportedLine | None = Field(
        default=None, description="Desired models held, of all desired models: 3/5."
    )
    desired: tuple[DesiredModelStatus, ...] = Field(
        default=(), max_length=4096, description="The CachedModels that select this node."
    )
    models: tuple[Held, ...] = Field(
        default=(), max_length=4096, description="The models that this node holds."
    )
    next_victims: tuple[NextVictim, ...] = Field(
        default=(),
        max_length=MOST_VICTIMS,
        description="The models that a new one would evict first, the next one first.",
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


def with_pins(document: NodeCache, pinned: Container[str]) -> NodeCache:
    """The document with the pins of now, by model key; what is reported of models that aren't here stays as it is."""
    status = document.status
    held = tuple(each.model_copy(update={"pinned": each.key in pinned}) for each in status.models)
    keys = {each.key for each in held}
    desired = tuple(
        each.model_copy(update={"pinned": each.model_key in pinned})
        if each.model_key in keys
        else each
        for each in status.desired
    )
    update = {"models": held, "desired": desired}
    return document.model_copy(update={"status": status.model_copy(update=update)})

"""The CachedModel document: which model should be on which nodes, and the progress of that.

Users write the spec. In a cluster the controller writes the status, from the agents' reports in their NodeCaches.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from cache_agent.api.kube_objects import (
    GENERATION,
    Conditions,
    Count,
    LabelKey,
    LabelValue,
    Metadata,
    NonEmpty,
    Quantity,
    Reported,
    ReportedLine,
    ReportedText,
    SecretName,
    Strict,
    Timestamp,
)

KIND: Final = "CachedModel"
PLURAL: Final = "cachedmodels"
# Ready: every selected node holds the model, verified. Progressing: a node is fetching it. Degraded: a node failed.
CONDITIONS: Final = ("Ready", "Progressing", "Degraded")

Tier = Literal["disk", "memory"]
Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
DAYS: Final[tuple[Day, ...]] = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
TimeOfDay = Annotated[
    str, StringConstraints(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)
]
VariantName = Annotated[
    str, StringConstraints(pattern="^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=63)
]


class Window(Strict):
    """When a model may be fetched: from `start` to `end` on each of `days`. An earlier `end` is on the next day."""

    start: TimeOfDay = Field(description="The time at which it begins, HH:MM.")
    end: TimeOfDay = Field(
        description="The time at which it ends, HH:MM. An end before the start is on the next day."
    )
    days: tuple[Day, ...] = Field(
        default=DAYS,
        # JSON has lists only, which strict mode refuses for a tuple.
        strict=False,
        min_length=1,
        max_length=7,
        description="The days on which the window starts; by default all.",
    )
    time_zone: Annotated[
        str, StringConstraints(pattern="^[A-Za-z0-9_+/-]+$", min_length=1, max_length=64)
    ] = Field(
        default="UTC", description="A zone of the IANA time zone database, such as Europe/Berlin."
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.start == self.end:
            raise ValueError("start and end must differ")
        if len(set(self.days)) != len(self.days):
            raise ValueError("days lists a day twice")
        return self


class Spec(Strict):
    """The desired model, its nodes, and its priority."""

    image: NonEmpty = Field(
        description="A model image: registry.example/team/model:tag, or with a digest."
    )
    variant: VariantName | None = Field(
        default=None, description="bf16, int8 or int4; by default the image's own."
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Labels of the nodes that should hold it; by default all that run an agent.",
    )
    tier: Tier = Field(
        default="disk", description="memory also keeps it in the page cache, if it fits."
    )
    pin: bool = Field(
        default=False,
        description="Never evict it. Otherwise models of higher priority may evict it until there is space again.",
    )
    # Up to 99, because 100 is the rank of pinned models in the planner and of waiting pods in the fetch queue.
    priority: Annotated[int, Field(ge=0, le=99)] = Field(
        default=50,
        description="Higher is fetched first and evicted last. Models that a pod waits for come before all others.",
    )
    pull_secret: SecretName | None = Field(
        default=None,
        description="A Secret of type kubernetes.io/dockerconfigjson in Weightyard's own namespace.",
    )
    runtime_image: NonEmpty | None = Field(
        default=None,
        description="A container image, such as the inference server's, to pull through the node's container runtime.",
    )
    window: Window | None = Field(
        default=None, description="When it may be fetched; by default at any time."
    )
    bandwidth: Quantity | None = Field(
        default=None,
        description="Each node's limit in bytes per second, such as 100M; by default the agent's own limit.",
    )

    @model_validator(mode="after")
    def _pullable(self) -> Self:
        # With `//` both are spellings of a registry reference.
        scheme = "" if "://" in self.image else self.image.partition(":")[0]
        if scheme == "docker":
            raise ValueError("a docker engine's image can't be cached: push it to a registry")
        if self.pull_secret is not None and scheme == "oci":
            raise ValueError("a layout on the node needs no pullSecret")
        return self


class NodeFailure(Reported):
    """A node that failed to bring the model, and why."""

    node: ReportedLine = Field(description="The node's name.")
    reason: ReportedLine = Field(description="Why it failed, as one word for programs.")
    message: ReportedText = Field(description="Why it failed, and what to do about it.")


class Status(Reported):
    """The progress summed over the selected nodes. Sizes in bytes; `percent` is of all nodes' bytes."""

    observed_generation: Count = Field(default=0, description=GENERATION)
    conditions: Conditions = ()
    image: ReportedLine | None = Field(default=None, description="The image by digest.")
    model_key: ReportedLine | None = Field(
        default=None, description="The digest by which stores, labels and leases name the model."
    )
    variant: ReportedLine | None = Field(
        default=None, description="The variant of the image that nodes hold, such as bf16 or int4."
    )
    bytes_total: Count | None = Field(
        default=None, description="The model's size on one node, in bytes."
    )
    nodes_desired: Count = Field(default=0, description="Nodes that should hold it.")
    nodes_ready: Count = Field(default=0, description="Nodes that hold it, verified.")
    nodes_working: Count = Field(default=0, description="Nodes that are fetching it.")
    nodes_failed: Count = Field(default=0, description="Nodes that failed to fetch it.")
    held: ReportedLine | None = Field(
        default=None, description="Nodes that hold it, of the nodes that should: 3/5."
    )
    percent: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0,
        description="The share of all nodes' bytes that is there; 100 once all are ready.",
    )
    bytes_per_second: Count = Field(
        default=0, description="Bytes a second that all nodes together fetch now."
    )
    seconds_left: Count | None = Field(
        default=None, description="Seconds until the last node holds it, at the current rates."
    )
    size: ReportedLine | None = Field(default=None, description="bytesTotal for people: 14Gi.")
    progress: ReportedLine | None = Field(default=None, description="percent for people: 67%.")
    time_left: ReportedLine | None = Field(
        default=None, description="secondsLeft for people: 3m20s."
    )
    verified_at: Timestamp | None = Field(
        default=None, description="The oldest verification among its nodes."
    )
    failures: tuple[NodeFailure, ...] = Field(
        default=(), description="The first nodes that failed.", max_length=16
    )


class CachedModel(Reported):
    """A CachedModel. Laws: `parse(m.to_document()) == m`; what the CRD's schema and rules accept, `parse` accepts."""

    api_version: Literal["weightyard.dev/v1alpha1"]
    kind: Literal["CachedModel"]
    metadata: Metadata
    spec: Spec
    status: Status = Status()

    @property
    def name(self) -> str:
        return self.metadata.name

    @classmethod
    def parse(cls, document: Any) -> CachedModel:
        """Parse a document from a file or an API server. Raises pydantic's ValidationError."""
        return cls.model_validate(document)

    def selects(self, labels: dict[str, str]) -> bool:
        """Whether a node with these labels should hold the model."""
        return all(labels.get(name) == value for name, value in self.spec.node_selector.items())

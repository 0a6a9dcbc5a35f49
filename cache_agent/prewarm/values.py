"""The planner's input and output types. Frozen; times are seconds since the epoch, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cache_agent.api.cached_model import CachedModel, Tier, Window
from cache_agent.api.kube_objects import parse_quantity
from cache_agent.api.node_cache import DesiredModelState
from cache_agent.store.policy import Candidate
from cache_agent.store.values import StoredModel
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import parse_image


class FetchTarget(NamedTuple):
    """The subject of a fetch: one variant of an image. Several desired models may share one."""

    image: str
    variant: str | None


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One CachedModel that selects this node. `bandwidth` in bytes per second, 0 for no cap of its own."""

    name: str
    target: FetchTarget
    uid: str = ""
    generation: int = 0
    tier: Tier = "disk"
    pin: bool = False
    priority: int = 50
    pull_secret: str | None = None
    runtime_image: str | None = None
    window: Window | None = None
    bandwidth: int = 0

    @classmethod
    def from_cached_model(cls, model: CachedModel) -> DesiredModel:
        """The desired model that a document describes."""
        spec, metadata = model.spec, model.metadata
        return cls(
            name=metadata.name,
            target=FetchTarget(_canonical(spec.image), spec.variant),
            uid=metadata.uid,
            generation=metadata.generation,
            tier=spec.tier,
            pin=spec.pin,
            priority=spec.priority,
            pull_secret=spec.pull_secret,
            runtime_image=spec.runtime_image,
            window=spec.window,
            bandwidth=parse_quantity(spec.bandwidth) if spec.bandwidth else 0,
        )


def _canonical(image: str) -> str:
    """An image name in the store's spelling. An invalid name is returned unchanged, for the fetch to refuse."""
    try:
        return str(parse_image(image))
    except InvalidInput:
        return image


@dataclass(frozen=True, slots=True)
class CachedModelState:
    """A model in the store, as the eviction policy sees it. `evictable` is False where its eviction can't help.

    `fresh`: used or pulled moments ago, so its client, such as a starting pod, may be about to lease it.
    """

    candidate: Candidate
    evictable: bool = True
    pinned: bool = False
    leased: bool = False
    fresh: bool = False

    @property
    def key(self) -> Digest:
        return self.candidate.key

    @property
    def size(self) -> int:
        """The size of its files in bytes."""
        return self.candidate.size


@dataclass(frozen=True, slots=True)
class Inventory:
    """A snapshot of the store. `free`: the space that a new model may take at most.

    `next_victims`: what would be evicted first where a new model would go, with the bytes that each frees.
    """

    models: Mapping[Digest, StoredModel] = field(default_factory=dict)
    held: Mapping[Digest, CachedModelState] = field(default_factory=dict)
    free: int = 0
    total: int = 0
    used: int = 0
    evictable: int = 0
    next_victims: tuple[tuple[Candidate, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, and the time before which it isn't retried.

    `since`: when the first of the failures in a row was; `times`: how many they are.
    """

    reason: str
    message: str
    not_before: float
    since: float = 0.0
    times: int = 1


@dataclass(frozen=True, slots=True)
class TargetState:
    """The state of a target: its model, the missing bytes (`need`), running work, and the last failure.

    `asking`: a request to the registry runs. `running`: a fetch runs.
    """

    key: Digest | None = None
    need: int | None = None
    running: bool = False
    asking: bool = False
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """The state of a container image. `supported` is False when no container runtime is configured."""

    present: bool = False
    pulling: bool = False
    supported: bool = True
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class PlannerInput:
    """The input of the planner. `free`: space without evicting. `memory`: space for models with `tier: memory`.

    `pinned_for`: models whose pins came from desired models; other pins were made by hand and stay. `warm`: models in
    memory. `cold`: models that the kernel lately evicted from it. `releasing`: models whose removal has begun.
    `settling`: a fetch has just begun and its space isn't subtracted from `free` yet.
    """

    desired_models: tuple[DesiredModel, ...]
    now: float
    free: int
    memory: int = 0
    fetches: int = 2
    known: Mapping[FetchTarget, TargetState] = field(default_factory=dict)
    held: Mapping[Digest, CachedModelState] = field(default_factory=dict)
    runtime: Mapping[str, RuntimeImage] = field(default_factory=dict)
    pinned_for: frozenset[Digest] = frozenset()
    warm: frozenset[Digest] = frozenset()
    cold: frozenset[Digest] = frozenset()
    releasing: frozenset[Digest] = frozenset()
    settling: bool = False


@dataclass(frozen=True, slots=True)
class Resolve:
    """Resolve a desired model's image in its registry and count the missing bytes."""

    desired: DesiredModel


@dataclass(frozen=True, slots=True)
class Fetch:
    """Start a fetch."""

    desired: DesiredModel


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a fetch. Its bytes are kept, to resume from."""

    target: FetchTarget


@dataclass(frozen=True, slots=True)
class Pin:
    """Pin a model against eviction."""

    key: Digest


@dataclass(frozen=True, slots=True)
class ReleasePin:
    """Unpin a model. It stays until its space is needed."""

    key: Digest


@dataclass(frozen=True, slots=True)
class Warm:
    """Read a model into memory."""

    key: Digest


@dataclass(frozen=True, slots=True)
class Evict:
    """Remove a model, to free space for one of higher priority."""

    key: Digest


@dataclass(frozen=True, slots=True)
class PullRuntime:
    """Pull an image through the container runtime."""

    image: str
    pull_secret: str | None


Action = Resolve | Fetch | Stop | Pin | ReleasePin | Warm | Evict | PullRuntime


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """The state of a desired model, for the report. `failure`: what it failed with; only where its state is Failed."""

    state: DesiredModelState
    reason: str = ""
    message: str = ""
    key: Digest | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class PrewarmPlan:
    """The actions to take now, each desired model's outcome by name, and when to plan again at the latest (or None)."""

    actions: tuple[Action, ...]
    outcomes: Mapping[str, ModelOutcome]
    wake_at: float | None = None

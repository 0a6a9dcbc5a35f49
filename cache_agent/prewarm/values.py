"""The values that planning speaks in. Frozen; times are seconds since the epoch, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cache_agent.api.cached_model import CachedModel, Tier, Window
from cache_agent.api.document import parse_quantity
from cache_agent.api.node_cache import WantedState
from cache_agent.store.values import Model
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import parse_image


class Target(NamedTuple):
    """What is fetched: one variant of an image, whoever wants it."""

    image: str
    variant: str | None


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One CachedModel that selects this node. `bandwidth` in bytes per second, 0 for no cap of its own."""

    name: str
    target: Target
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
    def of(cls, model: CachedModel) -> DesiredModel:
        """What a document asks for."""
        spec, metadata = model.spec, model.metadata
        return cls(
            name=metadata.name,
            target=Target(_canonical(spec.image), spec.variant),
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
    """An image spelled as the store spells it. What makes no sense is left for the fetch to refuse, with its reason."""
    try:
        return str(parse_image(image))
    except InvalidInput:
        return image


@dataclass(frozen=True, slots=True)
class CachedModelState:
    """A model in the store. `freed` is what removing it alone would free, `value` what keeping it is worth.

    `fresh`: used or brought a moment ago. Whoever asked for it, such as a pod that starts, may be about to lease it.
    """

    key: Digest
    size: int
    freed: int
    pinned: bool = False
    leased: bool = False
    fresh: bool = False
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Inventory:
    """One look. `free` is what a new model may take at most; sizes in bytes."""

    models: Mapping[Digest, Model] = field(default_factory=dict)
    held: Mapping[Digest, CachedModelState] = field(default_factory=dict)
    free: int = 0
    total: int = 0
    used: int = 0
    evictable: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended, and before when it isn't tried again."""

    reason: str
    message: str
    not_before: float


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a target: the model it means, the bytes still missing, what is under way, what went wrong."""

    key: Digest | None = None
    need: int | None = None
    running: bool = False
    asking: bool = False
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """What is known of a container image. `supported` is False where no runtime can be reached."""

    present: bool = False
    pulling: bool = False
    supported: bool = True
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class PlannerInput:
    """All that a plan is made from. `free` may be taken without evicting; `memory` holds what `tier: memory` asks for.

    `pinned_for` are the models whose pins came from wishes; other pins were made by hand and stay. `warm` are in
    memory, `cold` were tried and don't stay there. `releasing` are on their way out. `settling`: a fetch has just
    begun, and what it takes isn't counted in `free` yet.
    """

    desired_models: tuple[DesiredModel, ...]
    now: float
    free: int
    memory: int = 0
    fetches: int = 2
    known: Mapping[Target, Known] = field(default_factory=dict)
    held: Mapping[Digest, CachedModelState] = field(default_factory=dict)
    runtime: Mapping[str, RuntimeImage] = field(default_factory=dict)
    pinned_for: frozenset[Digest] = frozenset()
    warm: frozenset[Digest] = frozenset()
    cold: frozenset[Digest] = frozenset()
    releasing: frozenset[Digest] = frozenset()
    settling: bool = False


@dataclass(frozen=True, slots=True)
class Resolve:
    """Ask the registry what a wish's image means and how much of it is missing."""

    desired: DesiredModel


@dataclass(frozen=True, slots=True)
class Fetch:
    """Begin to fetch."""

    desired: DesiredModel


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a fetch; what came is kept for when it goes on."""

    target: Target


@dataclass(frozen=True, slots=True)
class Pin:
    """Never evict this model."""

    key: Digest


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody wants it pinned any more: it stays until its space is needed."""

    key: Digest


@dataclass(frozen=True, slots=True)
class Warm:
    """Bring it into memory."""

    key: Digest


@dataclass(frozen=True, slots=True)
class Evict:
    """Remove it, to make room for what is wanted more."""

    key: Digest


@dataclass(frozen=True, slots=True)
class PullRuntime:
    """Have the container runtime pull an image."""

    image: str
    pull_secret: str | None


Action = Resolve | Fetch | Stop | Pin | Release | Warm | Evict | PullRuntime


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a wish stands, for whoever reads the report."""

    state: WantedState
    reason: str = ""
    message: str = ""
    key: Digest | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, how each wish stands, and when to look again if nothing happens before (None: never)."""

    actions: tuple[Action, ...]
    outcomes: Mapping[str, Outcome]
    wake_at: float | None = None

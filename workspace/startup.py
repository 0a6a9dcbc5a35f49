"""The timeline of a server's start: its stages, with their seconds. Pure, and the same in a cluster and for `up`.

Stages follow each other: each ends where the next begins. One whose end nobody told is part of the next. Where the ends
come from, which are pods, Events, logs and metrics, is no matter of this module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, Field, WithJsonSchema

from cache_agent.api.kube_objects import Count, Reported, ReportedLine, Timestamp

# Of one Workspace, the newest versions first.
MOST_STARTS: Final = 16
# Each stage once, and a part of the volume for each tier.
_MOST_STAGES: Final = 24
_LONGEST: Final = 1e8  # seconds
_DIGITS: Final = 1  # pods' times are whole seconds; a log's aren't


class StageName(StrEnum):
    """The stages of a start, in their order. The values are those of status, metrics and pages."""

    NODE = "node"
    VOLUME = "volume"
    IMAGE = "image"
    PROCESS = "process"
    ENGINE = "engine"
    WEIGHTS = "weights"
    COMPILE = "compile"
    WARM_UP = "warm-up"
    HEALTH = "health"
    FIRST_TOKEN = "first-token"  # noqa: S105 - a stage, no secret


# What a server does in each stage, for people.
MEANINGS: Final[Mapping[StageName, str]] = {
    StageName.NODE: "wait for a node",
    StageName.VOLUME: "fetch and mount the model",
    StageName.IMAGE: "pull the runtime's image and create the container",
    StageName.PROCESS: "start the process and import the engine",
    StageName.ENGINE: "initialise the engine",
    StageName.WEIGHTS: "load the weights",
    StageName.COMPILE: "compile",
    StageName.WARM_UP: "allocate the KV cache and warm up",
    StageName.HEALTH: "answer the first health check",
    StageName.FIRST_TOKEN: "wait for the first token",
}

# Seconds since a start began at which stages ended.
Ends = Mapping[StageName, float]

# Cut, not refused: one clock that is years off must not make a whole status unreadable.
Seconds = Annotated[
    float,
    Field(ge=0),
    AfterValidator(lambda seconds: min(seconds, _LONGEST)),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": _LONGEST}),
]


class StartStage(Reported):
    """One stage of a start; with a tier, the part of it that came from there. Parts overlap."""

    name: ReportedLine = Field(
        description="node, volume, image, process, engine, weights, compile, warm-up, health or first-token."
    )
    seconds: Seconds = Field(
        description="Its duration; of a tier, from its first byte's request to its last byte."
    )
    bytes: Count | None = Field(default=None, description="Bytes of the model, for a volume.")
    tier: ReportedLine | None = Field(
        default=None,
        description="Where a part of the volume's bytes came from: memory, disk, peer, shared, registry or hub.",
    )


class Startup(Reported):
    """The last start of a server of one version."""

    version: Count = Field(
        default=0, description="The version's number, as `weightyard rollout history` lists it."
    )
    pod: ReportedLine = Field(default="", description="The server's pod.")
    node: ReportedLine = Field(default="", description="The pod's node, once it has one.")
    started_at: Timestamp = Field(
        description="When it began: the pod's creation, or its container's restart."
    )
    stages: tuple[StartStage, ...] = Field(
        default=(), max_length=_MOST_STAGES, description="The stages that ended, in their order."
    )
    current: ReportedLine | None = Field(
        default=None, description="The stage that runs now; absent after the first health check."
    )
    total: Seconds | None = Field(
        default=None, description="Seconds until the first health check, once it has succeeded."
    )

    @property
    def ends(self) -> dict[StageName, float]:
        """The ends of the stages. Law: `timeline(s.ends, s.parts)` has the stages of `s`."""
        found: dict[StageName, float] = {}
        at = 0.0
        for each in self.stages:
            if each.tier is None and each.name in _NAMES:
                # Rounded like the ends in `timeline`: sums of tenths drift in
                # binary, and the law wouldn't hold.
                at = round(at + each.seconds, _DIGITS)
                found[StageName(each.name)] = at
        return found

    @property
    def main_tier(self) -> str | None:
        """The tier that most of the model's bytes came from; None where nobody told."""
        largest = max(self.parts, key=lambda part: part.size, default=None)
        return largest.tier if largest else None

    @property
    def parts(self) -> tuple[TierPart, ...]:
        """The parts of the volume by tier."""
        return tuple(
            TierPart(each.tier, each.bytes or 0, each.seconds)
            for each in self.stages
            if each.tier is not None
        )


_NAMES: Final = frozenset(stage.value for stage in StageName)


@dataclass(frozen=True, slots=True)
class TierPart:
    """What a volume got from one tier: bytes, and seconds from the first request to the last byte."""

    tier: str
    size: int
    seconds: float


def timeline(ends: Ends, parts: Iterable[TierPart] = ()) -> tuple[StartStage, ...]:
    """The stages whose ends are known, in their order, and after the volume its parts by tier.

    Clocks of several machines are compared: an end before that of the stage before it counts as equal to that.
    """
    found: list[StartStage] = []
    volume = sorted(parts, key=lambda part: part.tier)
    at = 0.0
    for stage in StageName:
        if stage not in ends:
            continue
        end = max(at, round(min(ends[stage], _LONGEST), _DIGITS))
        size = sum(part.size for part in volume) if stage is StageName.VOLUME and volume else None
        found.append(StartStage(name=stage, seconds=round(end - at, _DIGITS), bytes=size))
        if stage is StageName.VOLUME:
            found += [
                StartStage(name=stage, seconds=round(part.seconds, 3), bytes=part.size, tier=part.tier)
                for part in volume
            ]  # fmt: skip
        at = end
    return tuple(found)


def current_stage(ends: Ends, *, without: Collection[StageName] = ()) -> StageName | None:
    """The stage that runs; None once the server is healthy. `without`: stages that such a start doesn't have."""
    if StageName.HEALTH in ends or StageName.FIRST_TOKEN in ends:
        return None
    order = [stage for stage in StageName if stage not in without]
    last = max((order.index(stage) for stage in ends), default=-1)
    return order[last + 1]

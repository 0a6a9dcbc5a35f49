"""What an agent tells of a volume that it published: bytes and seconds by tier, in an annotation of its Event.

The Event is written in the pod's namespace, where others may write Events too: what is read is bounded, and only
numbers and names of tiers are kept.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, ValidationError

from cache_agent.api.kube_objects import Count, Reported

ANNOTATION: Final = "weightyard.dev/published"
TIERS: Final = ("memory", "disk", "peer", "shared", "registry", "hub")
# Characters. The controller keeps some records of each pod, and kubelet's names of volumes have 68.
_LONGEST: Final = 4096
_LONGEST_VOLUME: Final = 128

Seconds = Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)]


class TierBytes(Reported):
    """What a volume got from one tier: bytes, and seconds from the first request to the last byte."""

    tier: Annotated[str, Field(pattern=f"^({'|'.join(TIERS)})$")]
    bytes: Count
    seconds: Seconds = 0.0


class PublishRecord(Reported):
    """One published volume. `at` is in seconds since the epoch; `seconds` is the time since it was first asked for."""

    volume: Annotated[str, Field(max_length=_LONGEST_VOLUME)]
    at: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
    seconds: Seconds
    tiers: tuple[TierBytes, ...] = Field(default=(), max_length=len(TIERS))

    def to_annotation(self) -> str:
        """The annotation's value. Law: `parse_record(r.to_annotation()) == r`."""
        return self.model_dump_json(by_alias=True)


def parse_record(text: object) -> PublishRecord | None:
    """The record in an annotation; None if it isn't one."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        return None
    try:
        return PublishRecord.model_validate_json(text)
    except ValidationError:
        return None

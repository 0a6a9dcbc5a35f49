"""The building blocks of Weightyard's Kubernetes documents: base models, names, sizes, times, conditions.

Documents are the same in files, in a cluster and between programs. This module defines their form only.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP: Final = "weightyard.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "weightyard.dev/v1alpha1"

LABEL_PATTERN: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = rf"^{LABEL_PATTERN}(\.{LABEL_PATTERN})*$"
_QUANTITY_PATTERN: Final = r"([0-9]{1,18})(Ki|Mi|Gi|Ti|k|M|G|T)?"
_QUANTITY: Final = re.compile(_QUANTITY_PATTERN)
_AMOUNT_PATTERN: Final = (
    r"[0-9]{1,18}(\.[0-9]{1,9})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,2})?"
)
_LONGEST_AMOUNT: Final = 32
GENERATION: Final = (
    "The generation of the object, which each change of its spec raises, that this was made for."
)
_EVENT_MESSAGE: Final = 1024  # characters that the API server accepts
_SCALE: Final = {
    None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip


def parse_quantity(text: str) -> int:
    """Parse a Kubernetes quantity such as `24Gi` or `80G` into bytes. Raises ValueError."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("expected a size such as 24Gi, 500Mi or 80G")
    return int(match[1]) * _SCALE[match[2]]


def shown_bytes(count: int) -> str:
    """Bytes for people, as kubectl shows sizes: `812Gi`, `1.8Ti`, `512`."""
    size, unit = float(count), ""
    for unit in ("", "Ki", "Mi", "Gi", "Ti"):
        # What would be shown as 1024 of a unit is 1 of the next.
        if round(size) < 1024 or unit == "Ti":
            break
        size /= 1024
    digits = 1 if unit and size < 9.95 else 0
    return f"{size:.{digits}f}{unit}"


def shown_seconds(count: int) -> str:
    """Seconds for people, as kubectl shows ages: `45s`, `3m20s`, `2h5m`, `4d2h`."""
    minutes, seconds = divmod(count, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    first = next((n for n, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return "".join(f"{number}{unit}" for number, unit in parts[first : first + 2] if number) or "0s"


def _quantity(text: str) -> str:
    parse_quantity(text)
    return text


Quantity = Annotated[
    str,
    AfterValidator(_quantity),
    WithJsonSchema({"type": "string", "pattern": f"^{_QUANTITY_PATTERN}$", "maxLength": 32}),
]


def _amount(text: str) -> str:
    if len(text) > _LONGEST_AMOUNT or re.fullmatch(_AMOUNT_PATTERN, text) is None:
        raise ValueError("expected an amount such as 4, 500m, 1.5 or 16Gi")
    return text


# What Kubernetes itself takes for an amount of any resource, but not negative: a LimitRange below zero would keep every
# pod of its namespace from being created.
ResourceAmount = Annotated[
    str,
    AfterValidator(_amount),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_AMOUNT_PATTERN}$", "maxLength": _LONGEST_AMOUNT}
    ),
]
Namespace = Annotated[str, StringConstraints(pattern=f"^{LABEL_PATTERN}$", max_length=63)]
ObjectName = Annotated[str, StringConstraints(pattern=_SUBDOMAIN, max_length=253)]
SecretName = ObjectName
NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
# A prefix of up to 253 characters, a slash and a name of up to 63.
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[
    str, StringConstraints(pattern="^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$", max_length=63)
]
# The API server checks a schema's bounds as floating-point numbers: the greatest that all take for the same.
_MOST: Final = 1 << 53
Count = Annotated[
    int,
    Field(ge=0),
    AfterValidator(lambda count: min(count, _MOST)),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": _MOST}),
]


def _cut(characters: int) -> AfterValidator:
    return AfterValidator(lambda text: text[:characters])


# What programs report: a name, a word or a number for people, and whole sentences. What is too long is cut: an API
# server would refuse the whole status.
ReportedLine = Annotated[str, _cut(4096), WithJsonSchema({"type": "string", "maxLength": 4096})]
ReportedText = Annotated[str, _cut(32_768), WithJsonSchema({"type": "string", "maxLength": 32_768})]
# RFC 3339 in UTC, to the second: 2026-01-31T22:00:00Z.
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


def timestamp(seconds: float) -> str:
    """Format seconds since the epoch as a Timestamp."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def event(
    about: dict[str, Any], metadata: dict[str, Any], *, kind: Literal["Normal", "Warning"], reason: str,
    message: str, source: dict[str, str], now: str,
) -> dict[str, Any]:  # fmt: skip
    """A core/v1 Event that happened once. `about` refers to its object, `now` is a Timestamp."""
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": about,
        "type": kind, "reason": reason, "message": message[:_EVENT_MESSAGE], "count": 1,
        "firstTimestamp": now, "lastTimestamp": now, "source": source,
    }  # fmt: skip


class Strict(BaseModel):
    """Base of documents that users write: camelCase, frozen, no unknown fields, no conversions."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True,
        hide_input_in_errors=True, defer_build=True,
    )  # fmt: skip


class Reported(BaseModel):
    """Base of documents that programs write: camelCase, frozen; unknown fields, from later versions, are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        defer_build=True,
    )

    def to_document(self) -> dict[str, Any]:
        """The value as JSON without absent fields. Law: `model_validate(x.to_document()) == x`."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Metadata(BaseModel):
    """The fields of Kubernetes' ObjectMeta that are read. Files give a part of them, API servers all."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        defer_build=True,
    )

    name: ObjectName
    uid: str = ""
    generation: Count = 0
    resource_version: str = ""
    deletion_timestamp: Timestamp | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Condition(Reported):
    """A Kubernetes condition. `message` says what to do about it."""

    type: ReportedLine = Field(description="What the condition is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: ReportedLine = Field(description="Why, as one word for programs.")
    message: ReportedText = Field(description="Why, in whole sentences, and what to do about it.")
    observed_generation: Count = Field(default=0, description=GENERATION)
    last_transition_time: Timestamp = Field(description="When `status` last changed.")


# Each type of a kind's conditions occurs once.
Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=16, description="The state, one condition for each aspect of it."),
]

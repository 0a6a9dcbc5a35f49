"""Builds the record from packed layers. Pure: equal inputs give equal bytes on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from builder.collect import CollectedCheckpoint
from builder.pack import PackedLayer
from builder.source_digests import check_claims
from modelimage.errors import InvalidInput
from modelimage.record import Record


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of the weights as written to the record: nothing about the build machine."""

    uri: str
    revision: str
    extra: Mapping[str, Any] = field(default_factory=dict)


def make_record(
    checkpoint: CollectedCheckpoint,
    packed: Sequence[PackedLayer],
    *,
    origin: Origin,
    variant: str,
    quantization: Mapping[str, Any] | None = None,
) -> Record:
    """The record of one variant. Raises DigestMismatch if the source states another sha256 than the computed one."""
    # Sorted by path: the model key depends on the order.
    files = sorted((file for each in packed for file in each.files), key=lambda file: file.path)
    check_claims(files, checkpoint.claimed)
    return Record(
        variant=variant,
        source=origin.uri,
        revision=origin.revision,
        license=checkpoint.licence,
        facts=checkpoint.facts,
        files=tuple(files),
        layers=tuple(each.layer for each in packed),
        quantization=quantization,
        extra=origin.extra,
    )


def created_time(epoch: str | None) -> str | None:
    """The RFC 3339 time of a SOURCE_DATE_EPOCH value; None if it isn't set, so that no clock affects the image.

    Raises InvalidInput (reproducible-builds.org/specs/source-date-epoch).
    """
    if not epoch:
        return None
    try:
        return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInput(
            f"SOURCE_DATE_EPOCH is not a time: {epoch[:40]!r}",
            hint="Give whole seconds since 1970, or unset it.",
        ) from error

"""One build, end to end: source -> survey -> checkpoint -> layers -> record -> publication -> destination.

This is the composition; each step decides or does one thing in a module of its own. A build may be broken off at any
point: nothing shows under a tag before everything it names is there, and the next run skips what is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from builder.collect import Checkpoint, collect
from builder.destination import Destination, check_space, preflight
from builder.pack import PackedLayer, Packer
from builder.plan import PlannedLayer, plan_layers
from builder.publish import LayerSource, Sent, publish
from builder.records import Origin, make_record
from builder.remembered import RememberedDigests
from builder.reporter import Reporter
from builder.sources.base import ModelSource
from builder.survey import Survey, survey
from modelimage.digest import Digest
from modelimage.publication import Publication, publication
from modelimage.record import Record
from modelimage.resolve import DEFAULT_VARIANT


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What of the source is packed, and how. `created` is an RFC 3339 time, from SOURCE_DATE_EPOCH only."""

    variants: tuple[str, ...] = (DEFAULT_VARIANT,)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    convert_pickle: bool = False
    created: str | None = None


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What `--dry-run` shows: the survey, and the layers of the default variant."""

    survey: Survey
    layers: tuple[PlannedLayer, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was published: the records in the order of the variants, and what went over the wire."""

    publication: Publication
    records: tuple[Record, ...]
    sent: Sent


@dataclass(frozen=True, slots=True)
class PackedVariant:
    """One variant, ready to be published."""

    record: Record
    checkpoint: Checkpoint
    layers: Sequence[PackedLayer]


def plan_build(source: ModelSource, options: BuildOptions) -> BuildPlan:
    """Decide what would be packed, reading no weights. Raises as `survey` does."""
    surveyed = survey(
        source,
        include=options.include,
        exclude=options.exclude,
        convert_pickle=options.convert_pickle,
    )
    return BuildPlan(surveyed, plan_layers(surveyed.planned()))


def build(
    source: ModelSource,
    destination: Destination,
    options: BuildOptions,
    *,
    remembered: RememberedDigests,
    reporter: Reporter,
) -> BuildResult:
    """Build and publish. Raises what each step raises; the destination then has no new tag."""
    plan = plan_build(source, options)
    preflight(destination, options.variants)
    checkpoint = collect(plan.survey, reporter)
    origin = Origin(source.uri, source.revision)
    packed = pack_variant(
        checkpoint, destination, remembered, reporter, origin=origin, variant=DEFAULT_VARIANT
    )
    return publish_variants([packed], destination, options, reporter)


def pack_variant(
    checkpoint: Checkpoint,
    destination: Destination,
    remembered: RememberedDigests,
    reporter: Reporter,
    *,
    origin: Origin,
    variant: str,
    quantization: dict[str, Any] | None = None,
) -> PackedVariant:
    """Digest one variant's files, store them where the destination allows it, and make its record."""
    layers = plan_layers(checkpoint.files)
    packer = Packer(checkpoint.locations, remembered, destination.layout)
    if destination.layout is not None:
        check_space(destination.layout.path, (layer.size for layer in packer.missing(layers)))
    with reporter.progress(
        f"packing {variant}", sum(file.size for file in checkpoint.files)
    ) as bar:
        packed = packer.pack(layers, bar.advance)
    record = make_record(
        checkpoint, packed, origin=origin, variant=variant, quantization=quantization
    )
    for layer in packed:
        reporter.event("layer", digest=str(layer.layer.digest), size=layer.layer.size)
    return PackedVariant(record, checkpoint, packed)


def publish_variants(
    variants: Sequence[PackedVariant],
    destination: Destination,
    options: BuildOptions,
    reporter: Reporter,
) -> BuildResult:
    """Send what isn't there yet and set the tags."""
    records = tuple(each.record for each in variants)
    planned = publication(records, version=destination.version, created=options.created)
    sources: dict[Digest, LayerSource] = {
        layer.layer.digest: LayerSource(layer.plan.recipe, each.checkpoint.locations)
        for each in variants
        for layer in each.layers
    }
    if destination.layout is not None:
        # Its layers were written while they were hashed.
        publish(planned, sources, destination.writer, advance=lambda _: None)
        return BuildResult(planned, records, _written(variants))
    total = sum(layer.size for layer in planned.layers)
    with reporter.progress("publishing", total) as bar:
        sent = publish(planned, sources, destination.writer, advance=bar.advance)
    return BuildResult(planned, records, sent)


def _written(variants: Sequence[PackedVariant]) -> Sent:
    layers = {layer.layer.digest: layer for each in variants for layer in each.layers}
    held = sum(layer.layer.size for layer in layers.values() if layer.remembered)
    return Sent(sum(layer.layer.size for layer in layers.values()) - held, held)

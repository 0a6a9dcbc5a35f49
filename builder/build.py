"""One build, end to end: source -> survey -> checkpoint -> layers -> record -> publication -> destination.

This module composes the steps; each decides or does one thing in a module of its own. A build may be interrupted at
any point: no tag is visible before everything that its image refers to, and the next run skips finished work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builder.attestations import provenances, sboms
from builder.base_image import Base
from builder.collect import CollectedCheckpoint, collect
from builder.convert import check_torch
from builder.destination import Destination, preflight
from builder.digest_cache import DigestCache
from builder.layer_plan import PlannedLayer, plan_layers
from builder.pack import PackedLayer, Packer
from builder.publish import LayerSource, Sent, send, set_tags
from builder.quality_report import modelpack_manifest, quality_artifact
from builder.records import Origin, make_record
from builder.reporter import Reporter, Silent
from builder.reshard import bounded_sizes, is_large, reshard
from builder.sources.interface import ModelSource
from builder.survey import Survey, survey
from builder.variants import (
    BuiltVariant,
    QuantizeChoices,
    check_choices,
    check_suitable,
    check_variants,
    published_name,
    quantized_variant,
)
from modelimage.digest import Digest
from modelimage.durable import check_space
from modelimage.publication import Publication, publication
from modelimage.quantization import DEFAULT_VARIANT
from modelimage.readback import check_publication
from modelimage.record import Record
from modelimage.referrers import Artifact, attach
from modelimage.spans import span


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to pack from the source, and how. `variants` come from `chosen_variants`, so the published one is first.

    `created` is an RFC 3339 time, from SOURCE_DATE_EPOCH only; weight files above `max_layer_size` bytes are split;
    `base` goes below the model in image manifests. `staged` stores weights locally even if they could be streamed.
    `sbom` and `provenance` attach such documents to what is published.
    """

    variants: tuple[str, ...] = (DEFAULT_VARIANT,)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    convert_pickle: bool = False
    quantize: QuantizeChoices = field(default_factory=QuantizeChoices)
    max_layer_size: int | None = None
    created: str | None = None
    base: Base | None = None
    staged: bool = False
    sbom: bool = False
    provenance: bool = False

    def parameters(self) -> dict[str, Any]:
        """The options that decide what an image holds, as its provenance states them; unset ones are empty."""
        return {
            "variants": list(self.variants),
            "include": list(self.include),
            "exclude": list(self.exclude),
            "convertPickle": self.convert_pickle,
            "maxLayerSize": self.max_layer_size,
            "engine": self.quantize.engine if self.variants != (DEFAULT_VARIANT,) else None,
            "groupSize": self.quantize.group_size,
        }


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """The output of `--dry-run`: the survey, and the layers of the default variant."""

    survey: Survey
    layers: tuple[PlannedLayer, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Result of a build: the records in the order of the variants, and the bytes transferred.

    `qualities`: the quality documents of the quantized variants, by variant.
    """

    publication: Publication
    records: tuple[Record, ...]
    sent: Sent
    qualities: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PackedVariant:
    """One variant, ready to be published. `quality` is the document to attach to it, if any."""

    record: Record
    checkpoint: CollectedCheckpoint
    layers: Sequence[PackedLayer]
    quality: bytes | None = None


def plan_build(source: ModelSource, options: BuildOptions) -> BuildPlan:
    """Decide what would be packed, without reading weights. Raises the errors of `survey` and InvalidInput."""
    check_choices(options.variants, options.quantize)
    surveyed = survey(
        source,
        include=options.include,
        exclude=options.exclude,
        convert_pickle=options.convert_pickle,
    )
    return BuildPlan(surveyed, plan_layers(surveyed.planned()))


@dataclass(frozen=True, slots=True)
class BuildTools:
    """Services of a build: caches that may be lost at any time, and the progress reporter."""

    remembered: DigestCache
    work_root: Path
    reporter: Reporter


def build(
    source: ModelSource, destination: Destination, options: BuildOptions, tools: BuildTools
) -> BuildResult:
    """Build and publish. Raises the errors of all steps; the destination then has no new tag."""
    with span("survey"):
        plan = plan_build(source, options)
    expected = plan_layers(bounded_sizes(plan.survey.planned(), options.max_layer_size))
    below = options.base.layer_count if options.base else 0
    # Before anything is fetched: a limit of the registry must not be found after hours of work.
    for doubt in preflight(destination, options.variants, expected, base_layers=below):
        tools.reporter.say(doubt)
    check_suitable(plan.survey.config, options.variants, options.quantize)
    if plan.survey.selection.pickles:
        check_torch()
    # Streaming needs no space here, but what is converted, quantized or split must be on this disk.
    staged = not may_stream(plan.survey, destination, options)
    with span("collect"):
        published = collect(plan.survey, tools.work_root, tools.reporter, staged=staged)
    for warning in (*plan.survey.warnings, *published.warnings):
        tools.reporter.say(warning)
    # From headers alone: a variant that can't be made must fail before hours of work.
    check_variants(published, options.variants, options.quantize)
    # Stated in the record: the files then have other digests than the publisher's.
    made = {"convertedFrom": "pickle"} if published.converted else {}
    origin = Origin(source.uri, source.revision, {**plan.survey.origin, **made})
    packed = []
    for name in options.variants:
        variant = (
            BuiltVariant(published_name(published), published)
            if name == DEFAULT_VARIANT
            else quantized_variant(published, name, options.quantize, tools.reporter)
        )
        split = _split(variant, options.max_layer_size, tools.reporter)
        with span("pack", variant=variant.name):
            packed.append(pack_variant(split, destination, tools, origin=origin))
    with span("publish"):
        result = publish_variants(packed, destination, options, tools.reporter)
    # Only now: after any earlier failure the next run resumes from this directory.
    published.build_dir.remove()
    return result


def may_stream(surveyed: Survey, destination: Destination, options: BuildOptions) -> bool:
    """Whether weights can be streamed from source to destination: only if they are published unchanged. Pure."""
    limit = options.max_layer_size
    split = limit is not None and any(is_large(file, limit) for file in surveyed.planned())
    made = surveyed.selection.pickles or options.variants != (DEFAULT_VARIANT,) or split
    return destination.streamed is not None and not options.staged and not made


def _split(variant: BuiltVariant, limit: int | None, reporter: Reporter) -> BuiltVariant:
    """Split the variant's weight files that are above the limit."""
    if limit is None:
        return variant
    folder = f"split-{variant.name}-{limit}"
    return replace(variant, checkpoint=reshard(variant.checkpoint, limit, folder, reporter))


def pack_variant(
    variant: BuiltVariant, destination: Destination, tools: BuildTools, *, origin: Origin
) -> PackedVariant:
    """Compute the digests of a variant's files, store them if the destination needs it, and make the record."""
    checkpoint = variant.checkpoint
    layers = plan_layers(checkpoint.files)
    packer = Packer(checkpoint, tools.remembered, destination.layout, destination.streamed)
    missing = packer.missing(layers)
    if destination.layout is not None:
        check_space(destination.layout.path, sum(layer.size for layer in missing))
    size = sum(file.size for file in checkpoint.files)
    verb = "streaming" if checkpoint.remote else "packing"
    with tools.reporter.progress(f"{verb} {variant.name}", size) as bar:
        # A resumed build starts at the progress it had reached.
        bar.resume(size - sum(layer.content_size for layer in missing))
        packed = packer.pack(layers, bar.advance)
    for layer in packed:
        tools.reporter.event("layer", digest=str(layer.layer.digest), size=layer.layer.size)
    record = make_record(
        checkpoint, packed, origin=origin, variant=variant.name, quantization=variant.quantization
    )
    return PackedVariant(record, checkpoint, packed, variant.quality)


def publish_variants(
    variants: Sequence[PackedVariant],
    destination: Destination,
    options: BuildOptions,
    reporter: Reporter,
) -> BuildResult:
    """Send what the destination lacks and set the tags."""
    records = tuple(each.record for each in variants)
    planned = publication(
        records,
        version=destination.version,
        created=options.created,
        bases=options.base.images if options.base else None,
    )
    # A node must never find an image under a tag that it refuses.
    check_publication(planned)
    # Variants share layers; any of them can provide the bytes.
    sources: dict[Digest, LayerSource] = {
        layer.layer.digest: LayerSource(
            layer.plan.recipe, each.checkpoint.locations, each.checkpoint.remote
        )
        for each in variants
        for layer in each.layers
    }
    sent = _send(planned, sources, destination, options.base, reporter)
    # Attached before the tags are set, so that every tagged variant has its report.
    for each in variants:
        if each.quality is not None:
            subject = modelpack_manifest(planned, each.record)
            artifact = quality_artifact(subject, each.quality, variant=each.record.variant)
            attach(destination.writer, artifact)
    for artifact in _attestations(planned, records, options):
        attach(destination.writer, artifact)
    set_tags(planned, destination.writer)
    # A layout got its layers while they were hashed, so there the digest cache tells what is new.
    qualities = {each.record.variant: each.quality for each in variants if each.quality is not None}
    moved = _with_streamed(sent, variants) or _written(variants)
    return BuildResult(planned, records, moved, qualities)


def _attestations(
    planned: Publication, records: Sequence[Record], options: BuildOptions
) -> Iterator[Artifact]:
    if options.sbom:
        yield from sboms(planned, records, options.created)
    if options.provenance:
        images = options.base.images.values() if options.base else ()
        bases = sorted((image.manifest for image in images), key=str)
        yield from provenances(planned, records, options.parameters(), bases, options.created)


def _send(
    planned: Publication,
    sources: dict[Digest, LayerSource],
    destination: Destination,
    base: Base | None,
    reporter: Reporter,
) -> Sent | None:
    """Send what the destination lacks. None for a layout, whose layers were written while they were hashed."""
    below = base.reader if base else None
    if not destination.reports_progress:
        sent = send(planned, sources, destination.writer, Silent(), base=below)
        return None if destination.layout is not None else sent
    total = sum(layer.size for layer in planned.layers)
    total += sum(layer.size for layer in planned.bases)
    with reporter.progress("publishing", total) as bar:
        return send(planned, sources, destination.writer, bar, base=below)


def _with_streamed(sent: Sent | None, variants: Sequence[PackedVariant]) -> Sent | None:
    """Count layers streamed during packing as sent, although they existed when the rest was sent."""
    if sent is None:
        return None
    streamed = sum(layer.layer.size for each in variants for layer in each.layers if layer.streamed)
    return Sent(sent.sent + streamed, sent.held - streamed)


def _written(variants: Sequence[PackedVariant]) -> Sent:
    layers = {layer.layer.digest: layer for each in variants for layer in each.layers}
    held = sum(layer.layer.size for layer in layers.values() if layer.remembered)
    return Sent(sum(layer.layer.size for layer in layers.values()) - held, held)

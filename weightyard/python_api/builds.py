"""Builds images, for Python programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelimage.errors import InvalidInput
from modelimage.reference import DEFAULT_TAG, parse_image
from modelimage.user_cache import user_cache
from weightyard.options import environment_access
from weightyard.python_api.progress_console import progress_console


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """One variant of a built image: its name, the key that stores name it by, and its size in bytes.

    `quality`: what was measured of a quantized one, in a line.
    """

    name: str
    key: str
    size: int
    quality: str = ""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A published image: its reference, its digest, the tags that name it or a variant, and its variants.

    `unchanged`: the tag named this very image before.
    """

    image: str
    digest: str
    tags: Mapping[str, str]
    variants: tuple[BuiltVariant, ...]
    unchanged: bool = False


def build(
    source: str | Path,
    to: str,
    *,
    variants: Sequence[str] = (),
    evaluate: bool = False,
    max_perplexity_ratio: float | None = None,
    max_kl: float | None = None,
    calibration: str | None = None,
    calibration_samples: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    convert_pickle: bool = False,
    sbom: bool = False,
    provenance: bool = False,
    source_uri: str | None = None,
    revision: str | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
    progress: bool | None = None,
) -> BuiltImage:
    """Pack a checkpoint into an image: a directory, hf://, s3:// and so on, to a registry, oci:DIR or docker:NAME.

    `variants`: quantized ones beside the published weights, such as int8 and int4; a bound fails the build where one is
    worse than its source, and implies `evaluate`. `source_uri` and `revision` are recorded for a directory. An
    interrupted build resumes when it is called again.
    """
    # Imported here: the builder is an extra, and most programs only pull.
    from builder.build import BuildOptions, BuildTools  # noqa: PLC0415
    from builder.build import build as build_image  # noqa: PLC0415
    from builder.digest_cache import DigestCache  # noqa: PLC0415
    from builder.records import created_time  # noqa: PLC0415
    from builder.sources.datasets import calibration_file  # noqa: PLC0415
    from builder.sources.factory import open_source  # noqa: PLC0415
    from builder.variants import (  # noqa: PLC0415
        EvaluationChoices,
        QuantizeChoices,
        chosen_variants,
    )
    from weightyard.build_report import measured, shown_result  # noqa: PLC0415
    from weightyard.build_targets import check_apart, open_target, published  # noqa: PLC0415

    wanted = (variants,) if isinstance(variants, str) else tuple(variants)
    for name, bound in (("max_kl", max_kl), ("max_perplexity_ratio", max_perplexity_ratio)):
        if bound is not None and not bound >= 0:
            raise InvalidInput(f"{name} is {bound}: give 0 or more")
    if calibration_samples is not None and calibration_samples < 1:
        raise InvalidInput(f"calibration_samples is {calibration_samples}: give 1 or more")
    target, access = parse_image(str(to)), environment_access(plain_http, ca_file)
    check_apart(str(source), target)
    compared = EvaluationChoices(max_kl=max_kl, max_perplexity_ratio=max_perplexity_ratio)
    options = BuildOptions(
        variants=chosen_variants(wanted),
        include=tuple(include),
        exclude=tuple(exclude),
        convert_pickle=convert_pickle,
        quantize=QuantizeChoices(
            calibration=calibration_file(calibration) if calibration else None,
            calibration_samples=calibration_samples,
            evaluation=compared if evaluate or compared != EvaluationChoices() else None,
        ),
        created=created_time(os.environ.get("SOURCE_DATE_EPOCH")),
        sbom=sbom,
        provenance=provenance,
    )
    opened = open_source(str(source), os.environ, uri=source_uri, revision=revision)
    console, cache, before = (
        progress_console(progress),
        user_cache(os.environ),
        published(target, access),
    )
    tools = BuildTools(DigestCache(cache / "digests"), cache / "work", console)
    with console.resumable():
        result = build_image(opened, open_target(console, target, access), options, tools)
    document, _ = shown_result(result, target, before=before)
    told = measured(result)
    return BuiltImage(
        document["image"] if target.tag else f"{document['image']}:{DEFAULT_TAG}",
        document["digest"],
        document["tags"],
        tuple(
            BuiltVariant(each.variant, str(each.key), each.size, told.get(each.variant, ""))
            for each in result.records
        ),
        unchanged=document["unchanged"],
    )

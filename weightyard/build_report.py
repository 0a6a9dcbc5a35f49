"""What `weightyard build` prints: the plan of a dry run, or what was published."""

from __future__ import annotations

from typing import Any

from builder.build import BuildOptions, BuildPlan, BuildResult
from builder.destination import published_tags
from builder.quality_report import quality_text
from modelimage.digest import Digest
from modelimage.reference import DEFAULT_TAG, ImageReference
from quantize.quality import Quality
from weightyard.console import format_table
from weightyard.text import format_bytes, plural


def shown_plan(
    plan: BuildPlan, target: ImageReference, options: BuildOptions
) -> tuple[dict[str, Any], str]:
    """What would be packed, as a document and as text."""
    tags = published_tags(target.tag or DEFAULT_TAG, options.variants)
    # Numbered, since layers have no digests before their files are read.
    files = [
        {"path": file.path, "role": file.role.value, "size": file.size, "layer": number}
        for number, layer in enumerate(plan.layers, start=1)
        for file in layer.files
    ]
    ignored = plan.survey.selection.ignored
    document = {
        "destination": str(target), "tags": tags, "files": files, "ignored": ignored,
        "pickle": list(plan.survey.selection.pickles), "warnings": list(plan.survey.warnings),
        "size": sum(layer.size for layer in plan.layers),
        "source": {"uri": plan.survey.source.uri, "revision": plan.survey.source.revision},
    }  # fmt: skip
    rows = [(f["layer"], f["path"], format_bytes(int(str(f["size"]))), f["role"]) for f in files]
    parts = [format_table(["layer", "file", "size", "role"], rows)]
    if plan.survey.selection.pickles:
        converted = "\n".join(f"  {path}" for path in plan.survey.selection.pickles)
        parts.append(f"Converted to safetensors first:\n{converted}")
    if ignored:
        parts.append("Not packed:\n" + _indented(ignored.items()))
    parts += plan.survey.warnings
    parts.append(
        f"{plural(len(plan.layers), 'layer')}, {format_bytes(document['size'])}, to {target}"  # type: ignore[arg-type]
        f"\ntags: {', '.join(tags)}"
    )
    return document, "\n\n".join(parts)


def shown_result(
    result: BuildResult, target: ImageReference, *, before: Digest | None = None
) -> tuple[dict[str, Any], str]:
    """What was published, as a document and as text. `before`: what the tag named until then."""
    digest = result.publication.tags[target.tag or DEFAULT_TAG]
    qualities = {name: Quality.parse(data) for name, data in result.qualities.items()}
    variants = [
        {
            "variant": record.variant,
            "key": str(record.key),
            "size": record.size,
            "parameters": record.facts.parameters,
            "files": len(record.files),
            "quality": quality.to_json() if (quality := qualities.get(record.variant)) else None,
        }
        for record in result.records
    ]
    document = {
        "image": str(target), "digest": str(digest),
        "tags": {tag: str(each) for tag, each in result.publication.tags.items()},
        "variants": variants, "sent": result.sent.sent, "held": result.sent.held,
        "unchanged": digest == before,
    }  # fmt: skip
    lines = [
        (record.variant, format_bytes(record.size), f"model {record.key}")
        for record in result.records
    ]
    told = [f"{name}: {text}" for name, text in measured(result).items()]
    verb = "Unchanged:" if digest == before else "Built"
    table = format_table(["variant", "size", "identity"], lines)
    tags = ", ".join(result.publication.tags)
    parts = [f"{verb} {target}\n{digest}", table, *(["\n".join(told)] if told else [])]
    return document, "\n\n".join([*parts, f"tags: {tags}"])


def measured(result: BuildResult) -> dict[str, str]:
    """What each quantized variant costs in quality, in a line, by variant."""
    return {name: quality_text(Quality.parse(data)) for name, data in result.qualities.items()}


def summary(result: BuildResult, document: dict[str, Any]) -> str:
    """A build's result as Markdown, for the summary of a CI job. `document` is what `shown_result` made of it."""
    told = measured(result)
    rows = [
        f"| {each.variant} | {format_bytes(each.size)} | {told.get(each.variant, '')} |"
        for each in result.records
    ]
    unchanged = ", unchanged" if document["unchanged"] else ""
    heading = [f"### {document['image']}", "", f"`{document['digest']}`{unchanged}", ""]
    columns = ["| variant | size | compared with the published weights |", "|---|---|---|"]
    return "\n".join([*heading, *columns, *rows, ""])


def _indented(pairs: Any) -> str:
    listed = list(pairs)
    width = max(len(path) for path, _ in listed)
    return "\n".join(f"  {path.ljust(width)}  {reason}" for path, reason in listed)

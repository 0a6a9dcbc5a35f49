"""The index.json of an OCI image layout: its entries and their tags. Pure: parsed documents in, documents out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidImage, NotFound
from modelimage.reference import DEFAULT_TAG, tag_subject

INDEX: Final = "index.json"


def entries_of(index: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The entries of a layout's index. Raises InvalidImage."""
    entries = index.get("manifests")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise InvalidImage(f"{path / INDEX}: no list of manifests")
    return entries


def tag_of(entry: dict[str, Any]) -> str | None:
    """The tag of an entry; None for a manifest without one."""
    annotations = entry.get("annotations")
    tag = annotations.get(mediatypes.ANNOTATION_REF_NAME) if isinstance(annotations, dict) else None
    return tag if isinstance(tag, str) else None


def pick_entry(entries: Sequence[dict[str, Any]], tag: str, path: Path) -> dict[str, Any]:
    """The entry with a tag. Some tools write a whole reference as ref.name: its tag matches too.

    Raises NotFound, and InvalidImage if several manifests have it.
    """
    exact = [entry for entry in entries if tag_of(entry) == tag]
    found = exact or [entry for entry in entries if (tag_of(entry) or "").endswith(f":{tag}")]
    # Many tools write a single image without a tag; `latest` then means that image.
    if not found and tag == DEFAULT_TAG and len(entries) == 1 and tag_of(entries[0]) is None:
        found = list(entries)
    if not found:
        raise NotFound(f"no tag {tag!r} in {path}", hint=f"It holds: {_held(entries)}.")
    # Repeated entries of one manifest are harmless; different manifests under one tag are ambiguous.
    if len({entry.get("digest") for entry in found}) > 1:
        raise InvalidImage(
            f"several manifests in {path} are tagged {tag!r}", hint="Name one by its digest."
        )
    return found[0]


def _held(entries: Sequence[dict[str, Any]]) -> str:
    """The names that a user may choose: not those of signatures and other things about an image."""
    tags = sorted({tag for entry in entries if (tag := tag_of(entry)) and tag_subject(tag) is None})
    # Most tags are of no use to a reader, and a layout may have thousands.
    more = f" and {len(tags) - 20} more" if len(tags) > 20 else ""
    return ", ".join(tags[:20]) + more if tags else "images without a tag" if entries else "nothing"


def without_tag(entry: dict[str, Any]) -> Descriptor:
    """The descriptor of an entry's manifest, which has no tag anywhere else."""
    named = Descriptor.from_json(entry)
    annotations = {
        key: value
        for key, value in named.annotations.items()
        if key != mediatypes.ANNOTATION_REF_NAME
    }
    return Descriptor(
        named.media_type,
        named.digest,
        named.size,
        annotations=annotations,
        platform=named.platform,
        artifact_type=named.artifact_type,
    )


def retagged(
    entries: list[dict[str, Any]], descriptor: Descriptor, tag: str
) -> list[dict[str, Any]]:
    """The entries with a tag on this manifest, and on no other."""
    entry = descriptor.to_json()
    entry["annotations"] = {**descriptor.annotations, mediatypes.ANNOTATION_REF_NAME: tag}
    # An unchanged list is returned as it is, so that the caller doesn't rewrite index.json.
    kept = [each for each in entries if tag_of(each) != tag]
    return [*kept, entry] if entry not in entries else entries


def listed(entries: list[dict[str, Any]], descriptor: Descriptor) -> list[dict[str, Any]]:
    """The entries with this manifest among them, tagged or not."""
    if any(each.get("digest") == str(descriptor.digest) for each in entries):
        return entries
    return [*entries, descriptor.to_json()]


def index_bytes(index: dict[str, Any], entries: list[dict[str, Any]]) -> bytes:
    """index.json with these entries; its other members stay as they are."""
    defaults = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX}
    return canonical.to_bytes({**defaults, **index, "manifests": entries})

"""`weightyard prune`: removes old versions by a policy, and in a layout the unreferenced blobs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import click

from modelimage.access import Access, ImageRepository, open_image_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, NotFound
from modelimage.layout import Layout
from modelimage.mediatypes import ANNOTATION_REF_NAME
from modelimage.prune_plan import PrunePlan, PrunePolicy, plan_prune, unreferenced
from modelimage.push import read_tree
from modelimage.reference import LayoutReference, RegistryReference, parse_image, tag_subject
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, pass_console
from weightyard.options import Number, WholeNumber, access_options
from weightyard.text import format_bytes, plural

# A build stores blobs before the manifest that refers to them: younger ones may belong to a running
# build.
GRACE_SECONDS: Final = 3600.0


@click.command(
    epilog="""\b
Examples:
  weightyard prune registry.example/team/model --keep-last 3
  weightyard prune oci:./out --keep 'v2*' --yes
"""
)
@click.argument("repository")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Keep tags that match this pattern. Repeatable.",
)
@click.option(
    "--keep-last",
    type=WholeNumber(min=0),
    default=0,
    metavar="N",
    help="Keep the N highest versions, each with its variants' tags.",
)
@click.option(
    "--yes", is_flag=True, help="Remove them. Without --yes, only show what would be removed."
)
@click.option(
    "--grace",
    cls=AdvancedOption,
    type=Number(min=0),
    default=GRACE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="In a layout, keep younger blobs, which a running build may need.",
)
@access_options
@pass_console
def prune(
    console: Console,
    /,
    *,
    repository: str,
    keep: tuple[str, ...],
    keep_last: int,
    yes: bool,
    grace: float,
    access: Access,
) -> None:
    """Remove versions that a policy doesn't keep.

    Shows what it would do; --yes does it. A manifest with a kept tag is never removed.
    """
    reference = parse_image(repository)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(f"can't prune {reference}", hint="Use oci:DIR or a registry repository.")
    target = open_image_repository(reference, access)
    tags = {tag: target.resolve(tag).digest for tag in target.tags()}
    plan = plan_prune(tags, PrunePolicy(keep, keep_last), _members(target, tags))
    garbage: dict[Digest, int] = {}
    if yes:
        _remove(target, plan)
        console.event("pruned", tags=list(plan.removed))
    if isinstance(target, Layout):
        garbage = _garbage(target, plan, younger_than=grace)
        if yes:
            for digest in garbage:
                target.remove_blob(digest)
    document: dict[str, Any] = {
        "kept": list(plan.kept), "removed": list(plan.removed),
        "manifests": [str(digest) for digest in plan.manifests],
        "blobs": len(garbage), "bytes": sum(garbage.values()), "done": yes,
    }  # fmt: skip
    console.result(document, _text(plan, garbage, target, done=yes))


def _members(target: ImageRepository, tags: Mapping[str, Digest]) -> dict[Digest, set[Digest]]:
    """The manifests in each tagged image, read only if something may be attached to one of them."""
    images = {digest for tag, digest in tags.items() if tag_subject(tag) is None}
    subjects = {subject for tag in tags if (subject := tag_subject(tag)) is not None}
    if not isinstance(target, Layout) and subjects <= images:
        return {}
    found: dict[Digest, set[Digest]] = {}
    for tag, digest in tags.items():
        # An image that lacks a manifest can be pruned as well.
        if digest in images and digest not in found:
            with suppress(NotFound):
                tree = read_tree(target, target.resolve(tag))
                found[digest] = {each.descriptor.digest for each in tree.manifests}
    return found


def _remove(target: ImageRepository, plan: PrunePlan) -> None:
    if isinstance(target, Layout):
        # Tags go before blobs: an interrupted run leaves garbage, never a tag without its blobs.
        for tag in plan.removed:
            target.untag(tag)
        for entry in _orphans(target, plan):
            target.unlist(entry.digest)
        return
    for digest in plan.manifests:
        target.delete_manifest(digest)


def _orphans(layout: Layout, plan: PrunePlan) -> list[Descriptor]:
    """Untagged artifacts that refer to removed manifests."""
    found = {entry.digest: entry for digest in plan.subjects for entry in layout.referrers(digest)}
    tagged = {
        entry.digest for entry in layout.entries() if ANNOTATION_REF_NAME in entry.annotations
    }
    return [entry for digest, entry in found.items() if digest not in tagged]


def _garbage(layout: Layout, plan: PrunePlan, *, younger_than: float) -> dict[Digest, int]:
    """The blobs without references once the plan is executed, except young ones."""
    orphans = {entry.digest for entry in _orphans(layout, plan)}
    trees = [
        read_tree(layout, entry)
        for entry in layout.entries()
        if entry.annotations.get(ANNOTATION_REF_NAME) not in plan.removed
        and entry.digest not in orphans
    ]
    alive = [
        [
            *(each.descriptor.digest for each in tree.manifests),
            *(blob.digest for blob in tree.blobs),
        ]
        for tree in trees
    ]
    found = unreferenced(dict(layout.blobs()), alive)
    # By age, since a blob of a running build has no references yet.
    newest = time.time() - younger_than
    return {
        digest: size
        for digest, size in found.items()
        if layout.blob_path(digest).stat().st_mtime <= newest
    }


def _text(
    plan: PrunePlan, garbage: dict[Digest, int], target: ImageRepository, *, done: bool
) -> str:
    verb = "Removed" if done else "Would remove"
    lines = [
        f"{verb} tags: {_named(plan.removed)}",
        f"Kept tags: {_named(plan.kept)}",
    ]
    if isinstance(target, Layout):
        lines.append(
            f"{verb} {plural(len(garbage), 'blob')}, {format_bytes(sum(garbage.values()))}"
        )
    elif plan.removed:
        lines.append("The registry frees the space in its own garbage collection.")
    if not done and (plan.removed or garbage):
        lines.append("Nothing was changed: add --yes to remove them.")
    return "\n".join(lines)


def _named(tags: Sequence[str]) -> str:
    """Tags of images by name; those of signatures and other attachments go with their image, and are counted."""
    names = [tag for tag in tags if tag_subject(tag) is None]
    about = len(tags) - len(names)
    counted = [f"{about} of signatures and attachments"] if about else []
    return ", ".join([*names, *counted]) or "none"

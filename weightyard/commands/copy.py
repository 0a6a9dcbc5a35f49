"""`weightyard copy`: copies images between registries and layouts, for mirrors and air-gapped sites."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import click

from modelimage.access import Access, ImageRepository, open_image_repository
from modelimage.companions import (
    Companions,
    LeftOut,
    companion_blobs,
    find_companions,
    send_companions,
)
from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidInput, RemoteRefused
from modelimage.foreign import resolve_ours
from modelimage.publication import Document
from modelimage.push import (
    PushPlan,
    Reporting,
    execute,
    find_present,
    merge_trees,
    plan_push,
    put_tags,
    read_tree,
    relayed,
)
from modelimage.readback import check_readable
from modelimage.reference import (
    DEFAULT_TAG,
    EngineReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from modelimage.referrers import UNSOUND
from modelimage.registry.preflight import check_image
from modelimage.repository import BlobContent, ImageReader, ImageWriter
from weightyard.console import Console, pass_console
from weightyard.options import access_options
from weightyard.signals import stops_gently
from weightyard.text import format_bytes, plural

_Reference = RegistryReference | LayoutReference
# Of what was left out: enough to see of what kind it is.
_SHOWN: Final = 20


@click.command(
    epilog="""\b
Examples:
  weightyard copy registry.example/team/model:v1 oci:/media/disk/model:v1
  weightyard copy oci:/media/disk/model:v1 mirror.example/team/model:v1 --all-tags
  weightyard copy oci:./out:v1 docker:model:v1
"""
)
@click.argument("source")
@click.argument("destination")
@click.option(
    "--all-tags",
    is_flag=True,
    help="Also copy the version's other tags: v1-int8, v1-modelpack and so on.",
)
@click.option(
    "--referrers/--no-referrers",
    default=None,
    help="Copy what is attached to it and to its manifests, too: signatures, attestations, SBOMs, reports.  "
    "[default: referrers]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be sent; write nothing.")
@access_options
@pass_console
@stops_gently
def copy(
    console: Console,
    /,
    *,
    source: str,
    destination: str,
    all_tags: bool,
    referrers: bool | None,
    dry_run: bool,
    access: Access,
) -> None:
    """Copy an image with all its manifests and blobs and what is attached to them, digests unchanged.

    What the destination already holds is not sent; an interrupted copy resumes when it is run again.
    """
    start = _reference(source)
    target = parse_image(destination)
    if isinstance(target, EngineReference):
        if all_tags or referrers or dry_run:
            raise InvalidInput(
                "a docker engine accepts a single image only",
                hint="Leave --all-tags, --referrers and --dry-run out.",
            )
        _into_engine(console, open_image_repository(start, access), start, target)
        return
    end = _reference(destination)
    if end.digest is not None:
        raise InvalidInput(f"can't copy to a digest: {end}", hint="Name a tag, or leave it out.")
    reader = open_image_repository(start, access)
    writer = open_image_repository(end, access, mount_from=_mount_sources(start, end))
    tags = _tags(reader, start, end, all_tags=all_tags)
    for root in tags.values():
        _check_own(reader, root)
    plan = _plan(reader, writer, tags, referrers=referrers is not False)
    # Before anything is sent: a registry refuses a manifest that is too large only after all its blobs.
    if isinstance(end, RegistryReference):
        for doubt in check_image(end.registry, plan.manifests, plan.image.blobs):
            console.say(f"{doubt.message}. {doubt.hint}")
        plan = replace(plan, beside=plan.beside.without(_too_large(end.registry, plan.beside)))
    beside = plan.beside
    if not dry_run:
        with (
            console.resumable(),
            console.progress(f"copying to {end}", plan.all_blobs.size) as progress,
        ):
            reporting = Reporting(
                lambda blob: progress.part(blob.digest.short, blob.size), _shower(console)
            )
            content_of = partial(relayed, reader, backoff=access.connections.backoff)
            beside = _send(plan, tags, content_of, writer, reporting)
    document = _document(source, end, tags, plan.all_blobs) | {"leftOut": _left_out(beside)}
    console.result(document, _text(tags, plan.all_blobs, dry_run=dry_run))
    _report(console, end, beside)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The images' manifests and blobs, and their companions with the blobs that only these have."""

    manifests: tuple[Document, ...]
    image: PushPlan
    beside: Companions
    attached: PushPlan

    @property
    def all_blobs(self) -> PushPlan:
        return PushPlan(
            (*self.image.send, *self.attached.send), (*self.image.held, *self.attached.held)
        )


def _plan(
    reader: ImageReader, writer: ImageWriter, tags: dict[str, Descriptor], *, referrers: bool
) -> _Plan:
    trees = [read_tree(reader, root) for root in tags.values()]
    # Tags of one version share most blobs: each is sent once.
    manifests, blobs = merge_trees(trees)
    beside = find_companions(reader, trees) if referrers else Companions((), {})
    more = companion_blobs(beside, blobs)
    present = find_present(writer, [*blobs, *more])
    return _Plan(manifests, plan_push(blobs, present), beside, plan_push(more, present))


def _send(
    plan: _Plan,
    tags: dict[str, Descriptor],
    content_of: Callable[[Descriptor], BlobContent],
    writer: ImageRepository,
    reporting: Reporting,
) -> Companions:
    """Send the images and their companions; return those that arrived."""
    execute(
        plan.image,
        manifests=plan.manifests,
        tags={},
        content_of=content_of,
        writer=writer,
        reporting=reporting,
    )
    beside = send_companions(
        plan.beside,
        plan.attached,
        content_of=content_of,
        destination=writer,
        writer=writer,
        reporting=reporting,
    )
    # Last: a client that watches the version's tag finds its signatures in place.
    put_tags(writer, plan.manifests, {tag: root.digest for tag, root in tags.items()})
    return beside


def _too_large(registry: str, beside: Companions) -> list[LeftOut]:
    """The companions that exceed the registry's limits."""
    found = []
    for tree in beside.trees:
        try:
            check_image(registry, tree.manifests, tree.blobs)
        except RemoteRefused as error:
            found.append(LeftOut(str(tree.root.digest), error))
    return found


def _left_out(beside: Companions) -> list[dict[str, str]]:
    return [{"what": each.what, "reason": each.error.message} for each in beside.left_out]


def _report(console: Console, end: _Reference, beside: Companions) -> None:
    """Say what was left out, and raise an error of the first reason's kind if anything was."""
    for each in beside.left_out[:_SHOWN]:
        console.say(f"left out: {each.what}: {each.error.message}")
    if not beside.left_out:
        return
    first = beside.left_out[0].error
    kind = next(kind for kind in UNSOUND if isinstance(first, kind))
    raise kind(
        f"{end} lacks {plural(len(beside.left_out), 'attachment')} of the source that can't be copied",
        hint="The image itself is complete. Remove or replace them at the source, or copy with --no-referrers.",
    )


def _check_own(reader: ImageReader, root: Descriptor) -> None:
    """Raises InvalidImage for an image of ours that nodes would refuse; others' are copied as they are."""
    if resolve_ours(reader, root) is not None:
        check_readable(reader, root)


def _into_engine(
    console: Console, reader: ImageRepository, start: _Reference, target: EngineReference
) -> None:
    # Imported late: only copies into an engine need the extra with the docker SDK.
    from modelimage.docker_engine import DockerEngine, archive, image_for  # noqa: PLC0415

    engine = DockerEngine(os.environ)
    try:
        root = reader.resolve(start.name)
        _check_own(reader, root)
        image = image_for(reader, root, engine.platform())
        name = target.name if target.tag else f"{target.name}:{DEFAULT_TAG}"
        with console.progress(f"loading into {target}", image.size) as progress:
            engine.load(archive(reader, image, [name], progress.advance))
    finally:
        engine.close()
    document = {
        "source": str(start),
        "destination": f"docker:{name}",
        "digest": str(image.config.digest),
    }
    console.result(document, f"Loaded {name}, {format_bytes(image.size)}")


def _document(
    source: str, end: _Reference, tags: dict[str, Descriptor], plan: PushPlan
) -> dict[str, Any]:
    return {
        "source": source,
        "destination": str(end),
        "tags": {tag: str(root.digest) for tag, root in tags.items()},
        "sent": plan.size,
        "held": plan.held_size,
        "blobs": [{"digest": str(blob.digest), "size": blob.size} for blob in plan.send],
    }


def _text(tags: dict[str, Descriptor], plan: PushPlan, *, dry_run: bool) -> str:
    verb = "To send" if dry_run else "Sent"
    return (
        f"{verb}: {format_bytes(plan.size)} in {plural(len(plan.send), 'blob')}; "
        f"{format_bytes(plan.held_size)} were there already\ntags: {', '.join(tags)}"
    )


def _reference(text: str) -> _Reference:
    reference = parse_image(text)
    if isinstance(reference, EngineReference):
        raise InvalidInput(
            f"can't copy {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    return reference


def _mount_sources(start: _Reference, end: _Reference) -> list[str]:
    """The source's repository if both are in one registry: its blobs are mounted instead of uploaded."""
    if not isinstance(start, RegistryReference) or not isinstance(end, RegistryReference):
        return []
    return [start.repository] if start.registry == end.registry else []


def _tags(
    reader: ImageRepository, start: _Reference, end: _Reference, *, all_tags: bool
) -> dict[str, Descriptor]:
    """The destination's tags, each with its root descriptor."""
    root = reader.resolve(start.name)
    version = end.tag or start.tag or "latest"
    tags = {version: root}
    if all_tags:
        if start.tag is None:
            raise InvalidInput("--all-tags needs a tag of the source", hint="Write SOURCE:TAG.")
        # The variants' tags are named after the version: v1, v1-int8.
        for tag in reader.tags():
            if tag.startswith(f"{start.tag}-"):
                tags[version + tag.removeprefix(start.tag)] = reader.resolve(tag)
    # The version's own tag last: a client that watches it finds the others in place.
    return dict(reversed(tags.items()))


def _shower(console: Console) -> Callable[[Descriptor], None]:
    def show(blob: Descriptor) -> None:
        console.event("blob", digest=str(blob.digest), size=blob.size)

    return show

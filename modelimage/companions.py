"""What is stored beside an image and says something of it: signatures, attestations, SBOMs, reports.

They are found in three places: the referrers API, the fallback tag of registries without it, and cosign's tags
`sha256-<hex>.sig`, `.att` and `.sbom`. They may be about the image's index or about any manifest in it, and may have
companions of their own, such as the signature of an SBOM. Anyone who may push can attach one, so each is found and
copied on its own: one that is malformed or damaged is left out, and stops neither the others nor the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from modelimage.cosign_tags import put_joined
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound, WeightyardError
from modelimage.push import WORKERS, ImageTree, PushPlan, Reporting, merge_trees, read_tree
from modelimage.referrers import UNSOUND, cosign_tags, list_referrers
from modelimage.repository import BlobContent, ImageReader, ImageWriter
from modelimage.stage_workers import both, run_all

# Far more than any image has.
_MOST_TREES: Final = 10_000


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something attached that isn't copied. `what`: its digest or tag, or the manifest whose list names it."""

    what: str
    error: WeightyardError


@dataclass(frozen=True, slots=True)
class Companions:
    """The companions of some images; `tags`: those that cosign looks up by name; `left_out`: those not readable."""

    trees: tuple[ImageTree, ...]
    tags: dict[str, Descriptor]
    left_out: tuple[LeftOut, ...] = ()

    def without(self, left_out: Sequence[LeftOut]) -> Companions:
        """These companions except some, named by the digests of their roots."""
        names = {each.what for each in left_out}
        return Companions(
            tuple(tree for tree in self.trees if str(tree.root.digest) not in names),
            {tag: root for tag, root in self.tags.items() if str(root.digest) not in names},
            (*self.left_out, *left_out),
        )


def find_companions(reader: ImageReader, trees: Iterable[ImageTree]) -> Companions:
    """The companions of every manifest of some images, and theirs. Raises the reader's errors."""
    return _Search(reader).run(trees)


class _Search:
    """Finds companions. `seen`: the manifests whose companions were looked for, or will be."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader
        self._found: dict[Digest, ImageTree] = {}
        self._tags: dict[str, Descriptor] = {}
        self._left_out: dict[str, LeftOut] = {}
        self._seen: set[Digest] = set()

    def run(self, trees: Iterable[ImageTree]) -> Companions:
        left = [document.descriptor for tree in trees for document in tree.manifests]
        self._seen.update(each.digest for each in left)
        # Companions have companions, such as the signature of an SBOM. Each is
        # looked at once, so a cycle ends.
        while left and len(self._found) < _MOST_TREES:
            left += self._about(left.pop())
        if left:
            self._leave_out(
                left[0].digest,
                InvalidImage(
                    f"no more than {_MOST_TREES:,} artifacts attached to an image are read"
                ),
            )
        kept = {tag: root for tag, root in self._tags.items() if root.digest in self._found}
        return Companions(tuple(self._found.values()), kept, tuple(self._left_out.values()))

    def _about(self, subject: Descriptor) -> list[Descriptor]:
        """Read the companions of one manifest; return the manifests in them that are new."""
        named = self._tagged(subject.digest)
        self._tags |= named
        listed = list_referrers(
            self._reader,
            subject,
            leave_out=lambda error: self._leave_out(str(subject.digest), error),
        )
        fresh: list[Descriptor] = []
        for each in (*listed, *named.values()):
            if each.digest not in self._found and len(self._found) < _MOST_TREES:
                fresh += self._read(each)
        return fresh

    def _read(self, root: Descriptor) -> list[Descriptor]:
        try:
            tree = read_tree(self._reader, root)
        except UNSOUND as error:
            # Listed, but deleted since: the image is complete without it.
            if not isinstance(error, NotFound) or self._exists(root):
                self._leave_out(root.digest, error)
            return []
        self._found[root.digest] = tree
        fresh = [each.descriptor for each in tree.manifests]
        fresh = [each for each in fresh if each.digest not in self._seen]
        self._seen.update(each.digest for each in fresh)
        return fresh

    def _exists(self, root: Descriptor) -> bool:
        with suppress(NotFound):
            self._reader.manifest(root)
            return True
        return False

    def _tagged(self, subject: Digest) -> dict[str, Descriptor]:
        tags = {}
        for tag in cosign_tags(subject):
            try:
                tags[tag] = self._reader.resolve(tag)
            except NotFound:
                continue
            except UNSOUND as error:
                self._leave_out(tag, error)
        return tags

    def _leave_out(self, what: Digest | str, error: WeightyardError) -> None:
        # Once for each reason: a layout names the same damaged entry for every manifest that is asked about.
        self._left_out.setdefault(error.message, LeftOut(str(what), error))


def send_companions(
    companions: Companions,
    plan: PushPlan,
    *,
    content_of: Callable[[Descriptor], BlobContent],
    destination: ImageReader,
    writer: ImageWriter,
    reporting: Reporting,
) -> Companions:
    """Send the companions' blobs that `plan` names, then their manifests and tags; return those that arrived.

    `destination` reads what `writer` writes: signatures that one of cosign's tags has there already are kept.

    Raises what concerns the destination as a whole, such as Unreachable and AccessDenied.
    """
    failed: dict[Digest, WeightyardError] = {}

    def send(blob: Descriptor, guarded: Callable[[int], None]) -> None:
        try:
            with reporting.part(blob) as advance:
                writer.put_blob(content_of(blob), both(guarded, advance))
            reporting.finished(blob)
        except UNSOUND as error:
            failed[blob.digest] = error

    run_all(plan.send, send, advance=lambda _: None, workers=WORKERS)
    left_out = [
        LeftOut(str(tree.root.digest), failed[blob])
        for tree in companions.trees
        if (blob := next((b.digest for b in tree.blobs if b.digest in failed), None))
    ]
    sound = companions.without(left_out)
    return sound.without(_put_manifests(sound, destination, writer))


def _put_manifests(
    companions: Companions, destination: ImageReader, writer: ImageWriter
) -> list[LeftOut]:
    tags: dict[Digest, list[str]] = {}
    for tag, root in companions.tags.items():
        tags.setdefault(root.digest, []).append(tag)
    left_out = []
    for tree in companions.trees:
        try:
            for document in tree.manifests:
                writer.put_manifest(document.descriptor, document.data)
            data = tree.manifests[-1].data
            for tag in tags.get(tree.root.digest, ()):
                if not put_joined(data, tag, destination, writer):
                    writer.put_manifest(tree.root, data, tag)
        except UNSOUND as error:
            left_out.append(LeftOut(str(tree.root.digest), error))
    return left_out


def companion_blobs(companions: Companions, image: Iterable[Descriptor]) -> list[Descriptor]:
    """The blobs of companions that aren't among the image's. Pure."""
    held = {blob.digest for blob in image}
    return [blob for blob in merge_trees(companions.trees)[1] if blob.digest not in held]

"""Selects tags and manifests to prune. Policy and plan are pure, so a dry run shows exactly what a run would remove."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import tag_subject


@dataclass(frozen=True, slots=True)
class PrunePolicy:
    """Keep tags that match one of `keep` (shell patterns), and all tags of the `keep_last` highest versions.

    A version's tags are the version itself and its hyphenated extensions: v1, v1-int8, v1-int8-modelpack.
    """

    keep: tuple[str, ...] = ()
    keep_last: int = 0

    def __post_init__(self) -> None:
        if self.keep_last < 0 or not (self.keep or self.keep_last):
            raise InvalidInput(
                "no rule says which tags to keep",
                hint="Give --keep PATTERN, --keep-last N, or both.",
            )


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """Tags to remove, and the manifests that no other tag refers to."""

    kept: tuple[str, ...]
    removed: tuple[str, ...]
    manifests: tuple[Digest, ...]
    # What attachments may be about that goes with them: removed images and the manifests in no kept one.
    subjects: tuple[Digest, ...] = ()


def version_key(tag: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key for tags in natural order: v2 before v10, numbers before words."""
    # 18 digits at most: longer runs of digits are split, since int() refuses numbers of more than 4,300 digits.
    parts = re.findall(r"[0-9]{1,18}|[^0-9]+", tag)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def plan_prune(
    tags: Mapping[str, Digest],
    policy: PrunePolicy,
    members: Mapping[Digest, Collection[Digest]] = MappingProxyType({}),
) -> PrunePlan:
    """Plan what the policy removes. Law: a manifest with a kept tag is never in the plan.

    Tags of referrers and signatures (sha256-<hex>…) are kept or removed together with their subject, which may be a
    manifest inside a tagged image: `members` lists those of each image, where they are known.
    """
    ordinary = {tag: digest for tag, digest in tags.items() if tag_subject(tag) is None}
    versions = _versions(ordinary)
    last = (
        sorted(set(versions.values()), key=version_key)[-policy.keep_last :]
        if policy.keep_last
        else []
    )
    kept = {
        tag
        for tag in ordinary
        if versions[tag] in last or any(fnmatchcase(tag, pattern) for pattern in policy.keep)
    }
    # One manifest may have several tags: it, and what refers to it, is removed only with the last of them.
    alive = _with_members({ordinary[tag] for tag in kept}, members)
    dying = _with_members({ordinary[tag] for tag in ordinary.keys() - kept}, members) - alive
    removed = {
        tag for tag in tags if (tag in ordinary and tag not in kept) or (tag_subject(tag) in dying)
    }
    # Counted over all tags, since a referrer's index can be reachable under an ordinary tag as well.
    staying = {digest for tag, digest in tags.items() if tag not in removed}
    manifests = {tags[tag] for tag in removed} - staying
    return PrunePlan(
        kept=_sorted(tags.keys() - removed),
        removed=_sorted(removed),
        manifests=tuple(sorted(manifests)),
        subjects=tuple(sorted(dying)),
    )


def _with_members(
    images: Iterable[Digest], members: Mapping[Digest, Collection[Digest]]
) -> set[Digest]:
    return {digest for image in images for digest in (image, *members.get(image, ()))}


def _versions(tags: Iterable[str]) -> dict[str, str]:
    """Map each tag to its version: the shortest other tag that it extends with a hyphen, else itself."""
    found: dict[str, str] = {}
    # Shortest first, so that a version is in `found` before the tags that extend it.
    for tag in sorted(tags, key=len):
        bases = [base for base in found.values() if tag.startswith(f"{base}-")]
        found[tag] = min(bases, key=len) if bases else tag
    return found


def _sorted(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(tags, key=version_key))


def unreferenced(
    blobs: Mapping[Digest, int], reachable: Sequence[Iterable[Digest]]
) -> dict[Digest, int]:
    """The blobs, with their sizes, that are in none of the reachable sets. Pure."""
    alive = {digest for each in reachable for digest in each}
    return {digest: size for digest, size in blobs.items() if digest not in alive}

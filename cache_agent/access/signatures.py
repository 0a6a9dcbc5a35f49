"""Enforces image signatures on this node.

A rule has a pattern of image repositories and the public keys accepted for them. The first matching rule decides; an
image without a matching rule needs no signature. Verified images are noted on disk: while their registry is
unreachable they are still served, and cached images that were never verified aren't.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from cache_agent.config import SignatureSection
from cache_agent.store.values import repository_of
from modelimage import durable
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, Fault
from modelimage.reference import EngineReference, ImageReference
from modelimage.repository import ImageReader

# For types only: importing it needs the optional dependency.
if TYPE_CHECKING:
    from modelimage.keys import PublicKey

_MOST_NOTES: Final = 4096


class Untrusted(AccessDenied):
    """The image lacks a signature that this node requires."""

    fault: ClassVar[Fault] = Fault.CONTENT


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of image repositories and the accepted keys, of which one must have signed.

    `fingerprint` identifies the set of keys.
    """

    images: str
    keys: tuple[PublicKey, ...]
    fingerprint: str


class Trust:
    """Verifies signatures. Thread-safe. `notes`: a directory for its notes alone; None keeps none."""

    def __init__(self, rules: Sequence[Rule] = (), notes: Path | None = None) -> None:
        self._rules = tuple(rules)
        self._notes = notes

    @classmethod
    def from_config(cls, sections: Sequence[SignatureSection], notes: Path) -> Trust:
        """Build it from the settings. Raises InvalidInput, NotFound and AccessDenied for unreadable keys."""
        return cls(_rules(sections), notes)

    def reconfigure(self, sections: Sequence[SignatureSection]) -> None:
        """Replace the rules, for cached models too. Raises like `from_config`, and then keeps the old rules."""
        # One assignment: a concurrent check uses the old or the new rules, never a mix.
        self._rules = _rules(sections)

    def check(self, image: ImageReference, reader: ImageReader, root: Descriptor) -> None:
        """Raise Untrusted unless the manifest `root` of an image is signed as its rule requires.

        Reads the signature through `reader`; raises the reader's errors.
        """
        rule = self._rule(image)
        if rule is None or self._noted(rule, root.digest):
            return
        # Imported here: only nodes with rules need the optional dependency.
        from modelimage import cosign  # noqa: PLC0415

        try:
            cosign.verify(reader, root, rule.keys)
        except (cosign.NotSigned, cosign.BadSignature) as error:
            raise _untrusted(image, error) from error
        self._note(rule, root.digest)

    def knows(self, image: ImageReference, root: Digest) -> bool:
        """Whether an image may be used without its registry: no rule matches it, or it was verified before."""
        rule = self._rule(image)
        return rule is None or self._noted(rule, root)

    def _rule(self, image: ImageReference) -> Rule | None:
        if isinstance(image, EngineReference):
            return None
        name = repository_of(image)
        return next((rule for rule in self._rules if fnmatchcase(name, rule.images)), None)

    def _path(self, rule: Rule, root: Digest) -> Path | None:
        # With the keys in the name: a note made under other keys doesn't count after the rule changed.
        return self._notes / f"{root.hex}-{rule.fingerprint}" if self._notes else None

    def _noted(self, rule: Rule, root: Digest) -> bool:
        path = self._path(rule, root)
        return path is not None and path.exists()

    def _note(self, rule: Rule, root: Digest) -> None:
        path = self._path(rule, root)
        if path is None:
            return
        with durable.writing(path):
            durable.make_directories(path.parent)
            durable.write_file(path, b"")
            # Bounded. A dropped note costs one verification, and the image while its registry is unreachable.
            old = sorted(path.parent.iterdir(), key=_age)
            for each in old[:-_MOST_NOTES]:
                each.unlink(missing_ok=True)


def _age(path: Path) -> int:
    """A note's time in nanoseconds; 0 for one that another verification has dropped meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _rules(sections: Sequence[SignatureSection]) -> tuple[Rule, ...]:
    read: dict[Path, bytes] = {}
    for path in {path for section in sections for path in section.keys}:
        with durable.reading(path):
            read[path] = path.read_bytes()
    return tuple(_rule_of(section, read) for section in sections)


def _rule_of(section: SignatureSection, read: Mapping[Path, bytes]) -> Rule:
    from modelimage.keys import load_public_key  # noqa: PLC0415 - as above

    pems = [read[path] for path in section.keys]
    fingerprint = hashlib.sha256(b"\0".join(sorted(pems))).hexdigest()[:16]
    return Rule(section.images, tuple(map(load_public_key, pems)), fingerprint)


def _untrusted(image: ImageReference, error: AccessDenied) -> Untrusted:
    return Untrusted(
        f"this node accepts {image} only when it is signed: {error.message}",
        hint="Sign it with `weightyard sign --key`, or change the agent's `signatures` setting.",
    )

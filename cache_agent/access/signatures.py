"""Which images this node takes only when they are signed, and by whom.

A rule names image repositories by a pattern and the public keys that count for them; the first rule that fits decides,
and an image that no rule fits needs no signature. What was found signed is noted on disk, so that a model keeps being
served while its registry is away, and a cached one that no signature was ever seen of isn't.
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
from modelimage.errors import AccessDenied, DigestMismatch, Fault, NotFound
from modelimage.reference import EngineReference, ImageReference
from modelimage.repository import ImageReader

if TYPE_CHECKING:
    from modelimage.signing import PublicKey

_MOST_NOTES: Final = 4096


class Untrusted(AccessDenied):
    """This node takes the image only with a signature that it doesn't have."""

    fault: ClassVar[Fault] = Fault.CONTENT


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of image repositories and the keys of which any counts; `fingerprint` names the keys."""

    images: str
    keys: tuple[PublicKey, ...]
    fingerprint: str


class Trust:
    """Asks for signatures. Safe for threads. `notes` is a directory of its own; None notes nothing."""

    def __init__(self, rules: Sequence[Rule] = (), notes: Path | None = None) -> None:
        self._rules = tuple(rules)
        self._notes = notes

    @classmethod
    def of(cls, sections: Sequence[SignatureSection], notes: Path) -> Trust:
        """What the settings say. Raises InvalidInput, NotFound and AccessDenied for keys that can't be read."""
        return cls(_rules(sections), notes)

    def reconfigure(self, sections: Sequence[SignatureSection]) -> None:
        """Take new rules; what they ask for is asked of cached models too. Raises as `of`, and keeps the old ones."""
        self._rules = _rules(sections)

    def check(self, image: ImageReference, reader: ImageReader, root: Descriptor) -> None:
        """Raise Untrusted unless the manifest that an image's name leads to is signed as its rule asks.

        Reads the signature through `reader`; raises what that raises.
        """
        rule = self._rule(image)
        if rule is None or self._noted(rule, root.digest):
            return
        # Only who asks for signatures needs the extra that checks them.
        from modelimage import signing  # noqa: PLC0415

        try:
            signing.verify(reader, root, rule.keys)
        except (signing.NotSigned, signing.BadSignature) as error:
            raise _untrusted(image, error) from error
        self._note(rule, root.digest)

    def knows(self, image: ImageReference, root: Digest) -> bool:
        """Whether an image may be used without asking: no rule fits it, or it was found signed before."""
        rule = self._rule(image)
        return rule is None or self._noted(rule, root)

    def _rule(self, image: ImageReference) -> Rule | None:
        if isinstance(image, EngineReference):
            return None
        name = repository_of(image)
        return next((rule for rule in self._rules if fnmatchcase(name, rule.images)), None)

    def _path(self, rule: Rule, root: Digest) -> Path | None:
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
            old = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime_ns)
            for each in old[:-_MOST_NOTES]:
                each.unlink(missing_ok=True)


def _rules(sections: Sequence[SignatureSection]) -> tuple[Rule, ...]:
    read: dict[Path, bytes] = {}
    for path in {path for section in sections for path in section.keys}:
        with durable.reading(path):
            read[path] = path.read_bytes()
    return tuple(_rule_of(section, read) for section in sections)


def _rule_of(section: SignatureSection, read: Mapping[Path, bytes]) -> Rule:
    from modelimage.signing import load_public_key  # noqa: PLC0415 - as above

    pems = [read[path] for path in section.keys]
    fingerprint = hashlib.sha256(b"\0".join(sorted(pems))).hexdigest()[:16]
    return Rule(section.images, tuple(map(load_public_key, pems)), fingerprint)


def _untrusted(image: ImageReference, error: NotFound | DigestMismatch) -> Untrusted:
    return Untrusted(
        f"this node takes {image} only when it is signed: {error.message}",
        hint="Sign it with `weightyard sign --key`, or have the agent's `signatures` setting changed.",
    )

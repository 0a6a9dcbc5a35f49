"""in-toto statements (in-toto/attestation, spec/v1): claims about artifacts, which digests identify. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelimage import canonical
from modelimage.digest import Digest

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MEDIA_TYPE: Final = "application/vnd.in-toto+json"


def statement(
    subjects: Iterable[tuple[str, Digest]], predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    """A statement about artifacts, each a name (may be empty) and its digest. Equal arguments give equal bytes."""
    named = [
        {**({"name": name} if name else {}), "digest": {"sha256": digest.hex}}
        for name, digest in subjects
    ]
    return canonical.to_bytes(
        {
            "_type": STATEMENT_TYPE,
            "subject": named,
            "predicateType": predicate_type,
            "predicate": dict(predicate),
        }
    )


def names_subject(data: bytes, subject: Digest, predicate_type: str) -> bool:
    """Whether these bytes are a statement of this type about an artifact. Raises InvalidImage if they aren't JSON."""
    document = canonical.parse(data, what="a statement")
    if (document.get("_type"), document.get("predicateType")) != (STATEMENT_TYPE, predicate_type):
        return False
    subjects = document.get("subject")
    return isinstance(subjects, list) and any(_digest(each) == subject.hex for each in subjects)


def _digest(subject: object) -> object:
    digest = subject.get("digest") if isinstance(subject, Mapping) else None
    return digest.get("sha256") if isinstance(digest, Mapping) else None

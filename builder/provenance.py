"""The provenance of a build: an in-toto statement that says from which source and with which options it was made. Pure.

SLSA provenance v1 (slsa.dev/spec/v1.0/provenance). The builder states what it did; only a signature proves who wrote
the statement. It names no machine and, without SOURCE_DATE_EPOCH, no time: a repeated build attaches nothing new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from modelimage import intoto
from modelimage.digest import Digest
from modelimage.publication import Publication
from modelimage.record import Record
from modelimage.source_uris import is_commit

_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:(?://[^/?#]*)?)([^#]*)(#?)(.*)", re.DOTALL)
# What a path, a query or a fragment may hold unescaped (RFC 3986), and escapes themselves.
_UNESCAPED: Final = "/?:@!$&'()*+,;=~%"

PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
MEDIA_TYPE: Final = intoto.MEDIA_TYPE
FILE_NAME: Final = "provenance.intoto.json"
# Names what `externalParameters` mean: the options of `weightyard build`.
_BUILD_TYPE: Final = "https://weightyard.dev/build/v1"
_BUILDER: Final = "https://weightyard.dev/builder"


def provenance(
    published: Publication,
    records: Sequence[Record],
    *,
    parameters: Mapping[str, Any],
    bases: Sequence[Digest],
    builder_version: str,
    created: str | None = None,
) -> bytes:
    """The statement about everything that a build tagged. `bases`: manifest digests of base images.

    `parameters`: the build's options; `created`: an RFC 3339 time from SOURCE_DATE_EPOCH.
    """
    origin = records[0]
    stated = {"source": origin.source, "revision": origin.revision, **parameters}
    run: dict[str, Any] = {"builder": {"id": _BUILDER, "version": {"weightyard": builder_version}}}
    if created:
        run["metadata"] = {"finishedOn": created}
    predicate = {
        "buildDefinition": {
            "buildType": _BUILD_TYPE,
            "externalParameters": {name: value for name, value in stated.items() if value},
            "resolvedDependencies": [*_source(origin), *map(_base, bases)],
        },
        "runDetails": run,
    }
    subjects = sorted(published.tags.items())
    return intoto.statement(subjects, PREDICATE_TYPE, predicate)


def _source(record: Record) -> list[dict[str, Any]]:
    if not record.source:
        return []
    # The Hub's revisions are commits; other sources have none, or tags that may move.
    digest = {"digest": {"gitCommit": record.revision}} if is_commit(record.revision) else {}
    uri = as_uri(record.source)
    named = {"uri": uri} if uri else {"name": record.source}
    return [{**named, **digest}]


def _base(digest: Digest) -> dict[str, Any]:
    return {"name": "base image", "digest": {"sha256": digest.hex}}


def as_uri(text: str) -> str:
    """A source as documents for others write it: escaped by RFC 3986; empty for what is no URI, such as `local`."""
    parts = _URI.fullmatch(text)
    if parts is None:
        return ""
    start, path, mark, fragment = parts.groups()
    return _escaped(start, "[]") + _escaped(path) + mark + _escaped(fragment)


def _escaped(text: str, also: str = "") -> str:
    # A `%` that begins no escape is a character, and has to be escaped itself.
    lone = re.sub("%(?![0-9A-Fa-f]{2})", "%25", text)
    return quote(lone, safe=_UNESCAPED + also)

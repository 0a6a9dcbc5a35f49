"""Lists of a repository that the mirror passes on and doesn't keep: its tags, and the referrers of a manifest.

distribution-spec v1.1, "Content Discovery". Blocking. The registry answers with the caller's own credentials.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from cache_agent.servers.mirror.mirror_routes import MirrorRequest, RequestKind
from modelimage import canonical
from modelimage.errors import InvalidInput, RemoteRefused
from modelimage.mediatypes import OCI_INDEX
from modelimage.registry import answers
from modelimage.registry.client import RegistryRepository
from modelimage.registry.exchange import Request

_MAX_BYTES: Final = 4 << 20
_MAX_TEXT: Final = 512
# The parameters of the specification; others aren't passed on.
_PARAMETERS: Final[Mapping[RequestKind, tuple[str, ...]]] = {
    RequestKind.TAGS: ("n", "last"),
    # Registries name the next page of referrers as they like.
    RequestKind.REFERRERS: ("artifactType", "n", "last", "page", "nextToken", "token", "digest"),
}
_TYPES: Final[Mapping[RequestKind, str]] = {
    RequestKind.TAGS: "application/json",
    RequestKind.REFERRERS: OCI_INDEX,
}
_NEXT: Final = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')
_FILTERS: Final = re.compile(r"[A-Za-z, ]{1,200}")


@dataclass(frozen=True, slots=True)
class RegistryList:
    """A registry's answer. `following`: the query of the next page, empty without one; `filters`: those applied."""

    data: bytes
    media_type: str
    following: str
    filters: str


def query_of(kind: RequestKind, stated: str) -> str:
    """A query with the parameters that this kind of list has, encoded anew. Raises InvalidInput."""
    try:
        known = parse_qsl(stated[:8192], max_num_fields=32)
        return urlencode(
            [(n, value) for n, value in known if n in _PARAMETERS[kind] and len(value) <= _MAX_TEXT]
        )
    # Also UnicodeEncodeError, of bytes that are no UTF-8.
    except ValueError as error:
        raise InvalidInput("malformed request: too many parameters, or no text") from error


def fetch_listing(
    repository: RegistryRepository, wanted: MirrorRequest, query: str
) -> RegistryList:
    """Ask the registry. Raises NotFound, AccessDenied, Unreachable, RemoteRefused, InvalidImage."""
    path = f"{wanted.upstream_path}?{query}" if query else wanted.upstream_path
    url = f"{repository.origin}/v2/{repository.repository}/{path}"
    scopes = frozenset({f"repository:{repository.repository}:pull"})
    response = repository.sender.send(
        Request("GET", url, {"Accept": _TYPES[wanted.kind]}, scopes=scopes)
    )
    if response.status != 200:
        raise answers.refusal(response, f"the list {wanted.upstream_path}", repository.origin)
    link = _NEXT.search(response.header("Link") or "")
    filters = response.header("OCI-Filters-Applied") or ""
    data = response.read(_MAX_BYTES)
    # Only lists are passed on: the mirror is no way to fetch other documents.
    document = canonical.parse(data, what="a registry's list")
    if ("tags" if wanted.kind is RequestKind.TAGS else "manifests") not in document:
        raise RemoteRefused(f"{repository.origin} answered with no list")
    return RegistryList(
        data,
        _TYPES[wanted.kind],
        _query_of_link(repository, wanted.kind, link[1]) if link else "",
        filters if _FILTERS.fullmatch(filters) else "",
    )


def _query_of_link(repository: RegistryRepository, kind: RequestKind, link: str) -> str:
    try:
        return query_of(kind, urlsplit(link).query)
    except (ValueError, InvalidInput) as error:
        raise RemoteRefused(f"{repository.origin} links to {link[:200]!r}") from error

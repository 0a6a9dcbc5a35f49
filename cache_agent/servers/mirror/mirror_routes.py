"""Parses the mirror's URLs (distribution-spec v1.1, "Endpoints"). Pure.

containerd requests `/v2/<repository>/…?ns=<registry>`. podman and CRI-O send no `ns` and are configured with the
registry as the first part of the path: `/v2/<registry>/<repository>/…`. There a port is written with `_`, because a
repository name can't contain a colon: `registry.example_5000`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import RegistryReference, check_tag, parse_registry

_ENDPOINT = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]+)")
_TAGS = re.compile(r"/v2/(?P<name>.+)/tags/list")
_HOST_WITH_PORT = re.compile(r"(?P<host>.+)_(?P<port>[0-9]{1,5})")
_MAX_PATH = 1024


class BadAddress(InvalidInput):
    """A URL that the mirror doesn't serve. `status` and `code` are those of the specification."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class RequestKind(Enum):
    """The kinds of request. The values are the path segments."""

    MANIFEST = "manifests"
    BLOB = "blobs"
    TAGS = "tags"
    REFERRERS = "referrers"

    @property
    def is_list(self) -> bool:
        """Whether the answer is a list, which the registry makes."""
        return self in (RequestKind.TAGS, RequestKind.REFERRERS)


@dataclass(frozen=True, slots=True)
class MirrorRequest:
    """One manifest (by tag or digest) or blob (by digest) of one repository; its tags; or a manifest's referrers.

    `digest`: the requested one; None for a manifest by tag and for the tags. Blobs and referrers always have one.
    """

    kind: RequestKind
    image: RegistryReference

    @property
    def digest(self) -> Digest | None:
        return self.image.digest

    @property
    def upstream_path(self) -> str:
        """The path below the repository in the upstream registry."""
        if self.kind is RequestKind.TAGS:
            return "tags/list"
        return f"{self.kind.value}/{self.image.name}"


def parse_address(path: str, namespace: str | None) -> MirrorRequest | None:
    """Parse a request's path, still percent-encoded; None for `/v2/` itself. Raises BadAddress."""
    if path in ("/v2/", "/v2"):
        return None
    # The length first: the path comes from any client on the node.
    path = path if len(path) <= _MAX_PATH else ""
    if match := _TAGS.fullmatch(path):
        return MirrorRequest(RequestKind.TAGS, _repository(match["name"], namespace))
    match = _ENDPOINT.fullmatch(path)
    if match is None:
        message = "the mirror serves manifests, blobs, tags and referrers only"
        raise BadAddress(404, "UNSUPPORTED", message)
    kind, reference = RequestKind(match["kind"]), match["reference"]
    repository = _repository(match["name"], namespace)
    if kind is not RequestKind.MANIFEST or ":" in reference:
        return MirrorRequest(kind, _with_digest(repository, reference))
    try:
        return MirrorRequest(kind, repository.with_tag(check_tag(reference)))
    except InvalidInput as error:
        raise BadAddress(404, "MANIFEST_UNKNOWN", error.message) from error


def _repository(name: str, namespace: str | None) -> RegistryReference:
    host, path = (namespace, name) if namespace else _split(name)
    try:
        parsed = parse_registry(f"{host}/{path}")
    except InvalidInput as error:
        raise BadAddress(400, "NAME_INVALID", error.message) from error
    # Parsing adds defaults (docker.io, library/) and may read a tag: only a name that stays as it was is one.
    if parsed.registry != host or parsed.tag or parsed.digest:
        raise BadAddress(400, "NAME_INVALID", f"not a registry and repository: {name[:200]!r}")
    return parsed


def _split(name: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    if match := _HOST_WITH_PORT.fullmatch(first):
        return f"{match['host']}:{match['port']}", rest
    # The rule of image references: without a dot, a colon or `localhost`, the first part isn't a host.
    if rest and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    raise BadAddress(404, "NAME_UNKNOWN", "name the registry: /v2/<registry>/<repository>, or ?ns=")


def _with_digest(repository: RegistryReference, text: str) -> RegistryReference:
    try:
        digest = Digest.parse(text)
    except InvalidInput as error:
        raise BadAddress(400, "DIGEST_INVALID", error.message) from error
    return RegistryReference(repository.registry, repository.repository, digest=digest)

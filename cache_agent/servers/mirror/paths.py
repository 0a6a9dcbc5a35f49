"""The mirror's addresses (distribution-spec v1.1, "Endpoints"): text in, values out.

containerd asks `/v2/<repository>/…?ns=<registry>`; podman and CRI-O, which send no `ns`, are configured with the
registry as the first part of the path: `/v2/<registry>/<repository>/…`. There a port is written with `_`, since a
repository's name can't hold a colon: `registry.example_5000`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import RegistryReference, check_tag, parse_registry

_ENDPOINT = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)")
_HOST_WITH_PORT = re.compile(r"(?P<host>.+)_(?P<port>[0-9]{1,5})")
_MAX_PATH = 1024


class BadAddress(InvalidInput):
    """An address that names nothing here. `status` and `code` are what the specification answers."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Kind(Enum):
    """What is asked for. The value is the part of the path that says so."""

    MANIFEST = "manifests"
    BLOB = "blobs"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One manifest (by tag or digest) or blob (by digest) of one repository."""

    kind: Kind
    image: RegistryReference

    @property
    def digest(self) -> Digest:
        """The digest asked for. Only of addresses that have one, as those of blobs do."""
        if self.image.digest is None:
            raise ValueError("an address by tag has no digest")
        return self.image.digest

    @property
    def upstream_path(self) -> str:
        """The path below the repository, as the registry has it."""
        return f"{self.kind.value}/{self.image.name}"


def parse_address(path: str, namespace: str | None) -> Wanted | None:
    """What a request is for; None for `/v2/` itself. `path` is as it came, not decoded. Raises BadAddress."""
    if path in ("/v2/", "/v2"):
        return None
    match = _ENDPOINT.fullmatch(path) if len(path) <= _MAX_PATH else None
    if match is None:
        raise BadAddress(404, "UNSUPPORTED", "the mirror serves manifests and blobs only")
    kind, reference = Kind(match["kind"]), match["reference"]
    repository = _repository(match["name"], namespace)
    if kind is Kind.BLOB or ":" in reference:
        return Wanted(kind, _with_digest(repository, reference))
    try:
        return Wanted(kind, repository.with_tag(check_tag(reference)))
    except InvalidInput as error:
        raise BadAddress(404, "MANIFEST_UNKNOWN", error.message) from error


def _repository(name: str, namespace: str | None) -> RegistryReference:
    host, path = (namespace, name) if namespace else _split(name)
    try:
        parsed = parse_registry(f"{host}/{path}")
    except InvalidInput as error:
        raise BadAddress(400, "NAME_INVALID", error.message) from error
    if parsed.registry != host or parsed.tag or parsed.digest:
        raise BadAddress(400, "NAME_INVALID", f"not a registry and repository: {name[:200]!r}")
    return parsed


def _split(name: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    if match := _HOST_WITH_PORT.fullmatch(first):
        return f"{match['host']}:{match['port']}", rest
    if rest and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    raise BadAddress(
        404, "NAME_UNKNOWN", "say which registry: /v2/<registry>/<repository>, or ?ns="
    )


def _with_digest(repository: RegistryReference, text: str) -> RegistryReference:
    try:
        digest = Digest.parse(text)
    except InvalidInput as error:
        raise BadAddress(400, "DIGEST_INVALID", error.message) from error
    return RegistryReference(repository.registry, repository.repository, digest=digest)

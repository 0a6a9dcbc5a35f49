"""References to images: in a registry, in an OCI layout directory, or in a docker engine.

The registry grammar is that of distribution/reference, with its familiar-name rules: `ubuntu` means
`docker.io/library/ubuntu:latest`. docker.io's API host is registry-1.docker.io.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.source_uris import DOCUMENTS, instead_of_image

DEFAULT_TAG = "latest"
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
# A host with a port, a domain with a top level of letters, or this machine. Versions have dots too: `Llama-3.1`.
_LIKE_A_REGISTRY = re.compile(
    r"[a-z0-9.-]+:[0-9]{1,5}|localhost|(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}"
)


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """`registry/repository[:tag][@digest]`. Law: `parse_image(str(r)) == r`."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def api_host(self) -> str:
        """The host that serves this registry's API."""
        return "registry-1.docker.io" if self.registry == "docker.io" else self.registry

    @property
    def name(self) -> str:
        """The name to request from the registry: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest else (self.tag or DEFAULT_TAG)

    def with_tag(self, tag: str) -> RegistryReference:
        return RegistryReference(self.registry, self.repository, check_tag(tag))

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """`oci:DIR[:TAG][@digest]`: an OCI image layout directory. If DIR contains ':', TAG is required."""

    path: Path
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        return str(self.digest) if self.digest else (self.tag or DEFAULT_TAG)

    def with_tag(self, tag: str) -> LayoutReference:
        return LayoutReference(self.path, check_tag(tag))

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"oci:{self.path}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class EngineReference:
    """`docker:NAME[:TAG]`: an image in a docker engine."""

    name: str

    @property
    def repository(self) -> str:
        """The name without its tag."""
        return self.name.removesuffix(f":{self.tag}") if self.tag else self.name

    @property
    def tag(self) -> str | None:
        # A colon before a "/" belongs to a registry's port, not to a tag.
        head, colon, tag = self.name.rpartition(":")
        return tag if head and colon and "/" not in tag else None

    def __str__(self) -> str:
        return f"docker:{self.name}"


def check_directory_meant(path: Path) -> None:
    """Raise InvalidInput for a directory that is named like a repository, `ghcr.io/team/m`, and isn't there."""
    # Asked back, because `oci:` for `oci://` would create or miss a directory silently. One that is there is meant.
    first = path.parts[0] if path.parts else ""
    if len(path.parts) > 1 and _LIKE_A_REGISTRY.fullmatch(first) and not Path(first).exists():
        raise InvalidInput(
            f"oci:{path} means a directory, which isn't there, and its name is like a registry's",
            hint=f"Did you mean oci://{path}? For the directory, create it first: mkdir -p {shlex.quote(str(path))}",
        )


ImageReference = RegistryReference | LayoutReference | EngineReference


def parse_image(text: str) -> ImageReference:
    """Parse an image reference given by a user. Raises InvalidInput with the expected form.

    `oci:DIR` is a directory, `oci://REGISTRY/REPOSITORY` a registry reference.
    """
    # Only these words are schemes: `localhost:5000/model` has a colon too.
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("oci", "docker") and rest.startswith("//"):
        return _parse_url(scheme, rest[2:])
    if colon and scheme == "oci":
        return _parse_layout(rest)
    if colon and scheme == "docker":
        if not rest:
            raise InvalidInput("no image name after docker:", hint="Write docker:NAME:TAG.")
        return EngineReference(rest)
    return parse_registry(text)


def _parse_url(scheme: str, rest: str) -> RegistryReference:
    """`docker://NAME` as skopeo, `oci://NAME` as KServe, Helm and Flux write a registry reference."""
    # A directory would be created under this name: only without the slashes is one meant.
    if rest.startswith(("/", "./", "../")) or rest in ("", ".", ".."):
        directory = f"/{rest.lstrip('/')}" if rest.startswith("/") else rest or "./out"
        raise InvalidInput(
            f"no registry after {scheme}://: {rest[:200]!r}",
            hint=f"Write {scheme}://REGISTRY/REPOSITORY:TAG, or oci:{directory[:200]} for a directory.",
        )
    return parse_registry(rest)


def parse_registry(text: str) -> RegistryReference:
    """Parse `registry/repository[:tag][@sha256:…]`. Raises InvalidInput."""
    name, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    host, path = _split_host(name)
    # A colon before a "/" is a port: localhost:5000/model has no tag.
    head, colon, tag = path.rpartition(":")
    if colon and "/" not in tag:
        path = head
        check_tag(tag)
    else:
        tag = ""
    # Docker Hub's official images are in library/.
    if host == "docker.io" and "/" not in path:
        path = f"library/{path}"
    # A Workspace's file in place of an image would be asked of Docker Hub.
    is_file = path.endswith(DOCUMENTS) and not tag and not at and not name.startswith(host)
    if is_file or len(path) > 255 or not _REPOSITORY.fullmatch(path) or not _HOST.fullmatch(host):
        raise InvalidInput(
            f"not an image reference: {text[:200]!r}",
            hint=instead_of_image(text[:200]),
        )
    return RegistryReference(host, path, tag or None, digest)


def check_tag(tag: str) -> str:
    """Return a valid tag. Raises InvalidInput for any other (distribution-spec: at most 128 characters)."""
    if not _TAG.fullmatch(tag):
        raise InvalidInput(
            f"not a tag: {tag[:200]!r}",
            hint="A tag is letters, digits, '_', '.', '-', at most 128, and starts with no '.' or '-'.",
        )
    return tag


def tag_subject(tag: str) -> Digest | None:
    """The manifest that a tag is about: `sha256-<hex>` has its referrers, `sha256-<hex>.sig` is cosign's. Else None."""
    match = re.fullmatch(r"sha256-([0-9a-f]{64})(?:\..*)?", tag)
    return Digest(match[1]) if match else None


def _parse_layout(rest: str) -> LayoutReference:
    body, at, digest_text = rest.partition("@sha256:")
    digest = Digest(digest_text) if at else None
    path, colon, tag = body.rpartition(":")
    # A "/" after the last colon means that the colon belongs to the directory.
    if not colon or "/" in tag:
        path, tag = body, ""
    if not path:
        raise InvalidInput(
            "no directory after oci:", hint="Write oci:DIR or oci:DIR:TAG, for example oci:./out."
        )
    if tag:
        check_tag(tag)
    return LayoutReference(Path(path), tag or None, digest)


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # As docker: a first component is a host only if it can't be mistaken for a Docker Hub user.
    if slash and ("." in first or ":" in first or first == "localhost"):
        return ("docker.io" if first == "index.docker.io" else first), rest
    return "docker.io", name

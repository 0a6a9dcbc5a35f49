"""OCI descriptors and platforms (image-spec v1.1, descriptor.md): how a manifest refers to a blob."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelimage.bounds import MALFORMED
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput
from modelimage.mediatypes import is_speakable


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and a processor architecture, named as in Go (GOOS, GOARCH)."""

    os: str
    architecture: str

    def to_json(self) -> dict[str, str]:
        return {"architecture": self.architecture, "os": self.os}


LINUX_AMD64 = Platform("linux", "amd64")
LINUX_ARM64 = Platform("linux", "arm64")
UNKNOWN_PLATFORM = Platform("unknown", "unknown")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob or manifest: its media type, sha256 and size in bytes.

    Law: `Descriptor.from_json(d.to_json()) == d`.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = None

    @property
    def kind(self) -> str:
        """The media type as readers compare it: without parameters, in lower case (RFC 6838)."""
        return self.media_type.partition(";")[0].strip().lower()

    def to_json(self) -> dict[str, Any]:
        """The descriptor in the specification's form, without absent members."""
        out: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        if self.platform:
            out["platform"] = self.platform.to_json()
        return out

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Parse one descriptor. Raises InvalidImage when a required member is missing or wrong."""
        if not isinstance(value, Mapping):
            raise InvalidImage(f"descriptor is not an object: {value!r:.80}")
        try:
            media_type, size = value["mediaType"], value["size"]
            digest = Digest.parse(value["digest"])
            # An empty map may also be written as null, as Go does.
            annotations = value.get("annotations") or {}
            platform = _platform(value.get("platform"))
        except (*MALFORMED, InvalidInput) as error:
            raise InvalidImage(f"malformed descriptor: {error}") from error
        artifact_type = value.get("artifactType") or None
        if not isinstance(media_type, str) or not isinstance(artifact_type, str | None):
            raise InvalidImage(f"malformed descriptor of {digest}: mediaType or artifactType")
        if not is_speakable(media_type):
            raise InvalidImage(f"malformed descriptor of {digest}: mediaType {media_type[:80]!r}")
        # `type`, not isinstance: JSON's true would pass as an int.
        if type(size) is not int or not 0 <= size < 1 << 62:
            raise InvalidImage(f"malformed descriptor of {digest}: size")
        if not isinstance(annotations, Mapping) or not all(map(_is_text, annotations.values())):
            raise InvalidImage(f"malformed descriptor of {digest}: annotations must be strings")
        return cls(
            media_type=media_type,
            digest=digest,
            size=size,
            annotations=dict(annotations),
            platform=platform,
            artifact_type=artifact_type,
        )


def descriptors(document: Mapping[str, Any], member: str, *, what: str) -> list[Descriptor]:
    """The list of descriptors in a member of a manifest or index. Raises InvalidImage; `what` names the document."""
    listed = document.get(member)
    if not isinstance(listed, list):
        raise InvalidImage(f"{what} has no list of {member}")
    return [Descriptor.from_json(each) for each in listed]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _platform(value: object) -> Platform | None:
    if not isinstance(value, Mapping):
        return None
    return Platform(os=str(value.get("os", "")), architecture=str(value.get("architecture", "")))

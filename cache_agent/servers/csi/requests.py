"""Kubelet's CSI requests, parsed once into values. Pure; invalid requests raise InvalidInput.

The author of a pod writes an inline volume's attributes, so nothing in them is trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Final

from cache_agent.mounter.orders import VolumeTarget
from modelimage.errors import InvalidInput
from modelimage.reference import RegistryReference, parse_image
from modelimage.trace_headers import is_parent

_KUBERNETES: Final = "csi.storage.k8s.io/"
_POD_UID: Final = f"{_KUBERNETES}pod.uid"
_EPHEMERAL: Final = f"{_KUBERNETES}ephemeral"
_ATTRIBUTES: Final = frozenset({"image", "variant", "traceparent"})
_MAX_TEXT: Final = 2048
# The specification's limit for strings.
_MAX_ID: Final = 128
# Of the specification's enum VolumeCapability.AccessMode.Mode, without UNKNOWN.
_ACCESS_MODES: Final = range(1, 8)


@dataclass(frozen=True, slots=True)
class Capability:
    """What a request says of the volume: its access type, one of the two, and its access mode, 0 for none."""

    block: bool
    mount: bool
    access_mode: int

    def check(self) -> None:
        """Raise InvalidInput for what a model can't be, and for what the specification demands and isn't there."""
        if self.block:
            raise InvalidInput("a model is a directory, not a block device")
        if not self.mount:
            raise InvalidInput("the volume's capability is missing, or names no access type")
        # Any that is one: a model is only read, on however many nodes.
        if self.access_mode not in _ACCESS_MODES:
            raise InvalidInput("the volume's access mode is missing or unknown")


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """A volume at a target: what has a lease of its own. `readonly` as requested; every mount is read-only."""

    volume_id: str
    target: str
    readonly: bool

    @property
    def lease(self) -> str:
        """The id of the lease. Law: different uses have different ids."""
        place = hashlib.sha256(self.target.encode()).hexdigest()[:32]
        return f"{self.volume_id}@{place}" + ("" if self.readonly else "+rw")

    @property
    def incompatible(self) -> VolumeUse:
        """The use of the same volume at the same target that excludes this one."""
        return replace(self, readonly=not self.readonly)


@dataclass(frozen=True, slots=True)
class Publish:
    """A request to mount a model into a pod. `secrets` are left out of the repr."""

    use: VolumeUse
    pod: str
    image: RegistryReference
    variant: str | None
    secrets: Mapping[str, str] = field(repr=False, default_factory=dict)
    pod_name: str = ""
    trace: str = ""

    @property
    def volume_id(self) -> str:
        return self.use.volume_id

    @property
    def target(self) -> str:
        return self.use.target

    @property
    def what(self) -> tuple[str, str | None]:
        """The requested image and variant."""
        return str(self.image), self.variant


def parse_publish(
    *,
    volume_id: str,
    target: str,
    attributes: Mapping[str, str],
    secrets: Mapping[str, str],
    capability: Capability,
    readonly: bool,
    kubelet: PurePosixPath,
) -> Publish:
    """Parse a NodePublishVolume request. Raises InvalidInput, which names the wrong part."""
    use = VolumeUse(parse_volume_id(volume_id), target, readonly)
    place = VolumeTarget.parse(target, kubelet)
    capability.check()
    # Persistent volumes need a controller service, which this driver doesn't have.
    if attributes.get(_EPHEMERAL) != "true":
        raise InvalidInput("only inline volumes are served", hint="Use `csi:` in the pod itself.")
    if attributes.get(_POD_UID) != place.pod:
        raise InvalidInput("the volume's directory is another pod's, or podInfoOnMount is off")
    # Ignoring a misspelled attribute would mount the wrong variant without a word.
    unknown = {n for n in attributes if not n.startswith(_KUBERNETES)} - _ATTRIBUTES
    if unknown:
        raise InvalidInput(
            f"unknown volume attributes: {', '.join(sorted(unknown))[:200]}",
            hint="The known ones are image, variant and traceparent.",
        )
    return Publish(
        use=use,
        pod=place.pod,
        image=_image(attributes.get("image", "")),
        variant=_variant(attributes.get("variant", "")),
        secrets=dict(secrets),
        pod_name=_pod_name(attributes),
        trace=_trace(attributes.get("traceparent", "")),
    )


def parse_volume_id(text: str) -> str:
    """Check a volume's id: up to 128 bytes without control characters. Raises InvalidInput."""
    if not 0 < len(text.encode("utf-8", "surrogatepass")) <= _MAX_ID or not text.isprintable():
        raise InvalidInput("the volume's id is missing or malformed")
    return text


def _pod_name(attributes: Mapping[str, str]) -> str:
    """The pod's namespace/name, for messages; empty when kubelet sends none."""
    names = (attributes.get(f"{_KUBERNETES}pod.{part}", "") for part in ("namespace", "name"))
    namespace, name = names
    return f"{namespace}/{name}"[:300] if namespace and name else ""


def _image(text: str) -> RegistryReference:
    if not text or len(text) > _MAX_TEXT:
        raise InvalidInput("the volume names no image", hint="Add volumeAttributes.image.")
    image = parse_image(text)
    # A layout path would let the author of a pod read directories of the node.
    if not isinstance(image, RegistryReference):
        raise InvalidInput(f"a volume's image is in a registry, not at {text[:200]!r}")
    return image


def _trace(text: str) -> str:
    if text and not is_parent(text):
        raise InvalidInput(f"not a traceparent: {text[:80]!r}")
    return text


def _variant(text: str) -> str | None:
    if not text:
        return None
    if len(text) > 64 or not all(letter.isalnum() or letter in "-_." for letter in text):
        raise InvalidInput(f"not a variant: {text[:80]!r}")
    return text

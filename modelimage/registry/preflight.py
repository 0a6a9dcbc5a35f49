"""Reports, before the first byte is sent, that a registry would refuse an image. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelimage.descriptor import Descriptor
from modelimage.errors import RemoteRefused
from modelimage.publication import Document
from modelimage.registry.profiles import RegistryLimits, RegistryProfile, profile_for

# Layers are reported if they need a tenth of this rate or more to be sent within the registry's time limit.
_ASSUMED_BYTES_PER_SECOND = 50 << 20
_MANY_LAYERS = 100


class RegistryLimit(RemoteRefused):
    """An image exceeds a limit of its target registry."""


@dataclass(frozen=True, slots=True)
class LimitFinding:
    """A limit that the image may exceed. `fatal`: the registry is certain to refuse it."""

    message: str
    hint: str
    fatal: bool


def findings(
    profile: RegistryProfile,
    *,
    layer_sizes: Iterable[int],
    manifest_sizes: Iterable[int] = (),
    layer_count: int = 0,
) -> list[LimitFinding]:
    """The limits of a registry that an image exceeds, fatal ones first. Sizes in bytes.

    `layer_count` is the largest number of layers in one manifest.
    """
    limits = profile.limits
    found = [
        *_layers(profile, max(layer_sizes, default=0)),
        *_manifests(profile, max(manifest_sizes, default=0)),
        *_count(limits, profile.name, layer_count),
    ]
    # Fatal ones first: the caller raises the first and need not show the others.
    return sorted(found, key=lambda finding: not finding.fatal)


def check_image(
    host: str, manifests: Sequence[Document], blobs: Sequence[Descriptor]
) -> list[LimitFinding]:
    """Raise RegistryLimit if the registry at `host` is certain to refuse the image; return the other findings."""
    return raise_fatal(
        findings(
            profile_for(host),
            layer_sizes=[blob.size for blob in blobs],
            manifest_sizes=[len(document.data) for document in manifests],
        )
    )


def raise_fatal(found: list[LimitFinding]) -> list[LimitFinding]:
    """Raise RegistryLimit for the first fatal finding; return them all if there is none."""
    for finding in found:
        if finding.fatal:
            raise RegistryLimit(finding.message, hint=finding.hint)
    return found


def _layers(profile: RegistryProfile, largest: int) -> Iterable[LimitFinding]:
    limits = profile.limits
    if limits.layer_bytes is not None and largest > limits.layer_bytes:
        yield LimitFinding(
            f"{profile.name} takes layers of at most {limits.layer_bytes} bytes; the largest here has {largest}",
            f"Build with --max-layer-size {limits.layer_bytes}, which shards the weights losslessly.",
            fatal=True,
        )
    # A warning only: how fast the connection is, is known only once something was sent.
    elif (
        limits.upload_seconds and largest > limits.upload_seconds * _ASSUMED_BYTES_PER_SECOND // 10
    ):
        needed = largest / limits.upload_seconds / (1 << 20)
        yield LimitFinding(
            f"{profile.name} limits an upload to {limits.upload_seconds} s: the largest layer needs "
            f"{needed:.0f} MiB/s throughout",
            "On a slower connection, build with a smaller --max-layer-size.",
            fatal=False,
        )


def _manifests(profile: RegistryProfile, largest: int) -> Iterable[LimitFinding]:
    limit = profile.limits.manifest_bytes
    if limit is not None and largest > limit:
        yield LimitFinding(
            f"{profile.name} takes manifests of at most {limit} bytes; the largest here has {largest}",
            "Put fewer layers into the image.",
            fatal=True,
        )


def _count(limits: RegistryLimits, name: str, count: int) -> Iterable[LimitFinding]:
    if limits.layers is not None and count > limits.layers:
        yield LimitFinding(
            f"{name} takes at most {limits.layers} layers; the image has {count}",
            "Group the weight files into fewer layers.",
            fatal=True,
        )
    elif count > _MANY_LAYERS:
        yield LimitFinding(
            f"{count} layers are more than older container runtimes can stack (127)",
            "Group the weight files into fewer layers.",
            fatal=False,
        )

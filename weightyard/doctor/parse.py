"""Parses the node's files: mountinfo, and containerd's and kubelet's configuration. Text in, facts out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from modelimage.errors import InvalidInput
from modelimage.yaml_text import parse_yaml
from weightyard.doctor.facts import Containerd

# containerd 1 and 2 have the registry settings in differently named plugins.
_REGISTRIES: Final = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of mountinfo. `shared`: mounts propagate to or from its peer group."""

    at: str
    filesystem: str
    read_only: bool
    shared: bool


def mount_of(mountinfo: str, path: PurePosixPath) -> MountPoint | None:
    """The mount that contains a path (proc(5), mountinfo). Of two at one path, the later is on top."""
    best: MountPoint | None = None
    for found in _mounts(mountinfo):
        if path.is_relative_to(found.at) and (best is None or len(found.at) >= len(best.at)):
            best = found
    return best


def _mounts(text: str) -> Iterator[MountPoint]:
    for line in text.splitlines():
        # proc(5): a lone hyphen ends the optional fields, of which a line may have any number.
        fields, _, rest = line.partition(" - ")
        parts, kind = fields.split(" "), rest.split(" ")
        if len(parts) >= 6 and len(kind) >= 3:
            at = parts[4].encode().decode("unicode_escape")  # spaces are written as \040
            shared = any(each.startswith(("shared:", "master:")) for each in parts[6:])
            read_only = "ro" in parts[5].split(",") or "ro" in kind[2].split(",")
            yield MountPoint(at, kind[0], read_only, shared)


def containerd_of(where: str, text: str) -> Containerd:
    """The registry settings in a config.toml."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return Containerd(configuration=where, problem=f"{where} isn't TOML: {error}")
    plugins = _mapping(document.get("plugins"))
    registry: dict[str, Any] = {}
    for name in _REGISTRIES:
        # The later one wins: a file that was carried over to containerd 2 may still have the table of before.
        registry |= _mapping(_mapping(plugins.get(name)).get("registry"))
    path = registry.get("config_path")
    return Containerd(
        configuration=where,
        config_path=str(path) if path else None,
        inline_mirrors=tuple(sorted(_mapping(registry.get("mirrors")))),
    )


def eviction_hard(text: str) -> Mapping[str, str]:
    """The thresholds of a KubeletConfiguration; empty when it sets none or is something else."""
    try:
        documents = parse_yaml(text, what="the kubelet's configuration")
    except InvalidInput:
        return {}
    found = _mapping(_mapping(documents[0] if documents else None).get("evictionHard"))
    return {str(name): str(value) for name, value in found.items()}


def driver_version(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.1  …`."""
    words = text.split()
    return next((each for each in words if each[:1].isdigit() and "." in each), None)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

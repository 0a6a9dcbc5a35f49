"""Facts of one node as values: gathered on it, sent as JSON, judged anywhere. Decides and reads nothing.

Sizes are bytes, rates bytes per second (of network cards: bits per second), times seconds. None means unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

BUILDS = "builder"  # the extra with the sources and the quantization of builds


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class DiskFacts(_Facts):
    """The disk of the cache. The rates come from one small file, written through and read past the page cache.

    `problem` says why the trial failed. `nodefs` and `imagefs`: whether the cache shares the filesystem of kubelet, or
    of the container images.
    """

    path: str
    filesystem: str | None = None
    read_only: bool = False
    total: int
    free: int
    write_rate: float | None = None
    read_rate: float | None = None
    hard_links: bool | None = None
    problem: str | None = None
    nodefs: bool | None = None
    imagefs: bool | None = None


class Kubelet(_Facts):
    """kubelet's directory: whether it exists, has directories for drivers and pods, and propagates mounts to pods.

    `eviction_hard` has the thresholds of its configuration file; empty when that sets none or can't be read.
    """

    path: str
    found: bool
    registration: bool = False
    pods: bool = False
    shared: bool | None = None
    configuration: str | None = None
    eviction_hard: Mapping[str, str] = {}

    @property
    def runs_here(self) -> bool:
        """Whether this machine is a node. A mere directory is not enough: what was a node once may still have one."""
        return self.registration or self.configuration is not None


class Clock(_Facts):
    """Whether the clock is synchronized, its maximum error, and how far the API server's clock is ahead."""

    synchronized: bool | None = None
    error: float | None = None
    offset: float | None = None


class Nic(_Facts):
    """A network card that is up."""

    name: str
    rate: int | None = None


class Containerd(_Facts):
    """containerd's registry settings. `inline_mirrors` are old-style ones, which exclude a `config_path`."""

    configuration: str | None = None
    config_path: str | None = None
    inline_mirrors: tuple[str, ...] = ()
    problem: str | None = None


class Gpus(_Facts):
    """What the kernel's NVIDIA driver shows. `engine` is the version of vLLM installed with this program."""

    driver: str | None = None
    count: int = 0
    engine: str | None = None


class HostFacts(_Facts):
    """All facts of a node that the checks use. `selinux` is enforcing, permissive or None (off).

    `cpu_flags` are the CPU's instruction sets that decide which variants it can serve. `extras` are those of this
    program whose packages are all installed; `install` is the command that installs those of builds.
    """

    node: str
    kernel: str
    disk: DiskFacts
    kubelet: Kubelet
    clock: Clock = Clock()
    nics: tuple[Nic, ...] = ()
    containerd: Containerd = Containerd()
    selinux: str | None = None
    apparmor: bool = False
    cpu_flags: tuple[str, ...] | None = None
    gpus: Gpus = Gpus()
    extras: tuple[str, ...] = ()
    install: str = ""

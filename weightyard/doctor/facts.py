"""What is known of one node, as values: gathered there, sent as JSON, judged anywhere. Decides and reads nothing.

Sizes are bytes, rates bytes per second (of network cards: bits per second), times seconds. None is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Disk(_Facts):
    """Where models are kept. The rates are of one small file, written through and read back past the page cache.

    `problem` is why the trial failed, in words; `nodefs` and `imagefs` whether kubelet's own, and the container
    images', filesystem is the same one.
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
    """kubelet's directory: whether it is there, takes drivers and pods, and passes mounts on to the pods that see it.

    `eviction_hard` are the thresholds of its configuration file, empty where that says nothing or can't be read.
    """

    path: str
    found: bool
    registration: bool = False
    pods: bool = False
    shared: bool | None = None
    configuration: str | None = None
    eviction_hard: Mapping[str, str] = {}


class Clock(_Facts):
    """Whether something keeps the clock right, its greatest error, and how far the API server's is ahead."""

    synchronized: bool | None = None
    error: float | None = None
    offset: float | None = None


class Nic(_Facts):
    """A network card that is up."""

    name: str
    rate: int | None = None


class Containerd(_Facts):
    """containerd's registry settings. `inline_mirrors` are those of the old style, which exclude a `config_path`."""

    configuration: str | None = None
    config_path: str | None = None
    inline_mirrors: tuple[str, ...] = ()
    problem: str | None = None


class Gpus(_Facts):
    """What the NVIDIA driver of the kernel shows; `engine` is the version of vLLM installed beside this program."""

    driver: str | None = None
    count: int = 0
    engine: str | None = None


class NodeFacts(_Facts):
    """Everything about a node that a check asks for. `selinux` is enforcing, permissive or None (off).

    `cpu_flags` are those of the CPU's instruction sets that decide which variants it serves.
    """

    node: str
    kernel: str
    disk: Disk
    kubelet: Kubelet
    clock: Clock = Clock()
    nics: tuple[Nic, ...] = ()
    containerd: Containerd = Containerd()
    selinux: str | None = None
    apparmor: bool = False
    cpu_flags: tuple[str, ...] | None = None
    gpus: Gpus = Gpus()

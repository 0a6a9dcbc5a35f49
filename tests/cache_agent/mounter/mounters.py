"""A real mounter in a mount namespace of its own, and what the kernel says is mounted there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cache_agent.mounter.orders import MountOperation, Order, Report
from cache_agent.servers.csi.mount_client import MounterClient, checked
from modelimage.digest import Digest
from tests.servers.process import ServerProcess, child_environment, program


@dataclass(frozen=True)
class Mounted:
    """A line of mountinfo: what is mounted where, and its own options."""

    root: str
    target: str
    options: frozenset[str]


@dataclass(frozen=True)
class Orders:
    """Gives one order at a time. Raises what the mounter raised."""

    socket: Path

    def bind(self, key: Digest, target: str) -> bool:
        return self._give(Order(MountOperation.BIND, target, key)).changed

    def unbind(self, target: str) -> bool:
        return self._give(Order(MountOperation.UNBIND, target)).changed

    def look(self, target: str) -> Digest | None:
        return self._give(Order(MountOperation.LOOK, target)).key

    def _give(self, order: Order) -> Report:
        (report,) = MounterClient(self.socket).give([order])
        return checked(report)


class NamespacedMounter:
    """The mounter of a store at `root` with kubelet's directory at `kubelet`. Needs root."""

    def __init__(
        self, root: Path, kubelet: Path, *, user: int = 0, propagation: str = "private"
    ) -> None:
        self._propagation = propagation
        self._root, self._kubelet, self._user = root, kubelet, user
        self.socket = kubelet.parent / "mounter.sock"

    def __enter__(self) -> Self:
        command = [program("unshare"), "-m", "--propagation", self._propagation, sys.executable]
        arguments = [
            "-m",
            "weightyard.mounter",
            "--root",
            str(self._root),
            "--kubelet",
            str(self._kubelet),
        ]
        listening = ["--socket", str(self.socket), "--user", str(self._user)]
        self._process = ServerProcess(
            [*command, *arguments, *listening],
            log=self._kubelet.parent / "mounter.log",
            environment=child_environment(self._kubelet.parent),
        )
        self._process.__enter__()
        self._process.wait_for(lambda: "ready" in self._process.log_text(), what="ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__()

    @property
    def client(self) -> Orders:
        return Orders(self.socket)

    @property
    def proc(self) -> Path:
        """The mounter's directory in /proc: through its `root` one sees what it has mounted."""
        return Path(f"/proc/{self._process.pid}")

    def mounts(self) -> list[Mounted]:
        """What is mounted below kubelet's directory in the mounter's namespace."""
        return mounts_below(self._kubelet, self.proc)

    def inside(self, path: str | Path) -> Path:
        """A path as the mounter sees it."""
        return self.proc / "root" / str(path).lstrip("/")


def mounts_below(directory: Path, process: Path = Path("/proc/self")) -> list[Mounted]:
    """What is mounted below a directory as a process sees it, by its directory in /proc."""
    found = []
    for line in (process / "mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4].startswith(f"{directory}/"):
            found.append(Mounted(fields[3], fields[4], frozenset(fields[5].split(","))))
    return found


@contextmanager
def shared(directory: Path) -> Iterator[Path]:
    """A directory whose mounts pass to other namespaces and back, as kubelet's does."""
    mount, umount = program("mount"), program("umount")
    subprocess.run([mount, "--bind", directory, directory], check=True)
    try:
        subprocess.run([mount, "--make-shared", directory], check=True)
        yield directory
    finally:
        subprocess.run([umount, "--recursive", "--lazy", directory], check=True)


def volume(kubelet: Path, pod: str = "pod-1", name: str = "model") -> str:
    """A volume's target as kubelet prepares it: all directories but the last."""
    parent = kubelet / "pods" / pod / "volumes" / "kubernetes.io~csi" / name
    parent.mkdir(parents=True, exist_ok=True)
    return str(parent / "mount")


def fake_model(root: Path, key: str = "ab" * 32, data: bytes = b"weights") -> Digest:
    """A directory that looks like a cached model's."""
    directory = root / "models" / key
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(data)
    return Digest(key)

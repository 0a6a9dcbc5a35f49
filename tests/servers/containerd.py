"""containerd with a root, state and socket of its own, driven with `ctr` as its users drive it. Needs root.

Images are unpacked with its overlayfs snapshotter, or with the native one where /tmp takes no overlays.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.servers.overlay import takes_overlays
from tests.servers.process import (
    ContextServer,
    ServerFailed,
    ServerProcess,
    child_environment,
    program,
    run,
)

# the directory's name stays short: the path of a unix socket has at most 107 characters
CONFIG = """\
version = 2
root = {root}
state = {state}
disabled_plugins = [
  {disabled}"io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = {address}
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = {snapshotter}
"""


class Containerd(ContextServer):
    """A containerd, without CRI unless asked for."""

    def __init__(self, *, cri: bool = False) -> None:
        self._runs = itertools.count()
        self._disabled = "" if cri else '"io.containerd.grpc.v1.cri", '

    def _start(self, stack: ExitStack) -> None:
        self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctd-")))
        self.address = self._root / "sock"
        config = self._root / "config.toml"
        self._snapshotter = "overlayfs" if takes_overlays(self._root) else "native"
        settings = {
            "root": self._root / "root",
            "state": self._root / "state",
            "address": self.address,
            "snapshotter": self._snapshotter,
        }
        quoted = {k: json.dumps(str(v)) for k, v in settings.items()}
        config.write_text(CONFIG.format(disabled=self._disabled, **quoted))
        self._process = stack.enter_context(
            ServerProcess(
                [program("containerd"), "--config", str(config)],
                log=self._root / "log",
                environment=child_environment(self._root),
            )
        )
        self._process.wait_for(self._answers, what="answer")

    def ctr(self, *arguments: str) -> str:
        """Run `ctr` against this containerd and return its output. Raises ServerFailed."""
        command = [program("ctr"), "--address", str(self.address), *arguments]
        return run(command, environment=child_environment(self._root))

    def pull(self, reference: str, *options: str, hosts_dir: Path | None = None) -> None:
        """Pull and unpack the image for this machine's platform: over plain HTTP, or as a `hosts.toml` tree says."""
        where = ["--hosts-dir", str(hosts_dir)] if hosts_dir else ["--plain-http"]
        self.ctr("images", "pull", *where, *self._unpacked, *options, reference)

    def images(self) -> list[str]:
        """The references of the images it has."""
        return self.ctr("images", "list", "--quiet").split()

    def remove(self, reference: str) -> None:
        """Remove an image and, before it returns, everything that only it used."""
        self.ctr("images", "remove", "--sync", reference)

    @contextlib.contextmanager
    def mounted(self, reference: str) -> Iterator[Path]:
        """The image's root filesystem as a container would see it, read-only, while the context lasts."""
        with tempfile.TemporaryDirectory(prefix="mnt-", dir=self._root) as target:
            self.ctr("images", "mount", *self._unpacked, reference, target)
            try:
                yield Path(target)
            finally:
                self.ctr("images", "unmount", "--rm", *self._unpacked, target)

    def run_once(self, reference: str, *command: str) -> str:
        """What a command prints in a container of a pulled image."""
        name = f"once-{next(self._runs)}"
        return self.ctr("run", "--rm", *self._unpacked, reference, name, *command)

    def log_text(self) -> str:
        """containerd's whole log."""
        return self._process.log_text()

    @property
    def _unpacked(self) -> list[str]:
        return ["--snapshotter", self._snapshotter]

    def _answers(self) -> bool:
        if not self.address.exists():
            return False
        try:
            self.ctr("version")
        except ServerFailed:
            return False
        return True

"""podman with directories of its own: an independent client, and a Docker API for the docker SDK. Needs root.

Nothing of how this machine's podman is set up is used: not its runtime (which would be crun, where that is installed,
even where crun can't run), its storage driver, its networks, its policy.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.servers.overlay import takes_overlays
from tests.servers.process import ContextServer, ServerProcess, child_environment, program, run

STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{root}/root"
runroot = "{root}/run"
"""
CONTAINERS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{root}/tmp"
runtime = "runc"
[engine.runtimes]
runc = [{runc}]
[network]
network_config_dir = "{root}/networks"
"""
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class Podman(ContextServer):
    """A podman that shares nothing with the machine's own."""

    def _start(self, stack: ExitStack) -> None:
        self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pod-")))
        self._configure()
        stack.callback(self._release)

    def podman(self, *arguments: str) -> str:
        """Run `podman` with this storage and return its output. Raises ServerFailed."""
        return self.tool("podman", *arguments)

    def tool(self, name: str, *arguments: str) -> str:
        """Run another program of the same family (buildah, skopeo) with this storage. Raises ServerFailed."""
        return run([program(name), *arguments], environment=self._environment())

    def pull(self, reference: str, *options: str) -> None:
        """Pull an image over plain HTTP."""
        self.podman("pull", "--quiet", "--tls-verify=false", *options, reference)

    def images(self) -> list[str]:
        """The references of the images it has."""
        return self.podman("images", "--format", "{{.Repository}}:{{.Tag}}").split()

    @contextlib.contextmanager
    def mounted(self, reference: str) -> Iterator[Path]:
        """The image's root filesystem, read-only, while the context lasts."""
        target = self.podman("image", "mount", reference).strip()
        try:
            yield Path(target)
        finally:
            self.podman("image", "umount", reference)

    def run_once(self, reference: str, *arguments: str) -> str:
        """What a container of an image prints; `arguments` follow the image's entrypoint."""
        # podman's own choice is above what some machines allow.
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
        return self.podman("run", "--rm", "--network=none", *limits, reference, *arguments)

    @contextlib.contextmanager
    def docker_api(self) -> Iterator[str]:
        """Docker's API over this storage while the context lasts, as a base URL for the docker SDK."""
        socket = self._root / "api.sock"
        command = [program("podman"), "system", "service", "--time=0", f"unix://{socket}"]
        with ServerProcess(
            command, log=self._root / "api.log", environment=self._environment()
        ) as service:
            service.wait_for(socket.exists, what="socket")
            yield f"unix://{socket}"
        socket.unlink(missing_ok=True)

    def _environment(self) -> dict[str, str]:
        return child_environment(
            self._root,
            CONTAINERS_STORAGE_CONF=str(self._root / "storage.conf"),
            CONTAINERS_CONF=str(self._root / "containers.conf"),
            CONTAINERS_REGISTRIES_CONF=str(self._root / "registries.conf"),
            # health checks are run by the tests alone, with systemd and without
            DISABLE_HC_SYSTEMD="true",
        )

    def _configure(self) -> None:
        own = self._root / ".config" / "containers"  # HOME is the root
        own.mkdir(parents=True)
        (own / "policy.json").write_text(POLICY)
        driver = "overlay" if takes_overlays(self._root) else "vfs"
        files = {
            "storage.conf": STORAGE.format(root=self._root, driver=driver),
            "containers.conf": CONTAINERS.format(root=self._root, runc=json.dumps(program("runc"))),
            "registries.conf": "unqualified-search-registries = []\n",
        }
        for name, text in files.items():
            (self._root / name).write_text(text)

    def _release(self) -> None:
        self.podman("image", "umount", "--all", "--force")
        self.podman("rmi", "--all", "--force")

"""Building the images of Dockerfile.agent with buildah and running them with podman, in storage of the tests' own."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.images.base import make_base, make_root
from tests.servers.podman import Podman
from tests.servers.process import ServerFailed, program, run, wait_until

ROOT = Path(__file__).parents[2]
TARGETS = ("agent", "controller", "builder")
BASE = "localhost/python-base:test"
# What a restricted pod has; ulimits, since podman's own defaults may be above what this machine allows.
CONFINED = (
    "--network=host", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--no-healthcheck",
    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
)  # fmt: skip


class Workshop:
    """A place to build and run images. `podman` has the storage that `build` fills."""

    def __init__(self, podman: Podman, folder: Path) -> None:
        self._podman, self._folder = podman, folder
        self._wheels = folder / "wheels"

    def prepare(self, *extras: str) -> None:
        """Make the base image, and gather the wheels that the images install: builds reach no network for them."""
        root = self._folder / "root"
        root.mkdir()
        make_root(root)
        make_base(self._buildah, root, name=BASE)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(self._wheels)]
        wanted = [f".[{','.join(extras)}]", "hatchling", "setuptools", "wheel", "cyclonedx-bom"]
        subprocess.run([*command, *wanted], cwd=ROOT, check=True)

    def build(self, target: str) -> str:
        """Build a target of Dockerfile.agent and return the image's name."""
        name = f"localhost/weightyard-{target}:test"
        self._buildah(
            "bud", "--quiet", "--layers", "--isolation=chroot", "--pull-never", "--format=docker",
            "--build-arg", f"PYTHON_IMAGE={BASE}",
            "--build-arg", "PIP_OPTIONS=--no-index --find-links=/wheels",
            "--build-arg", "REVISION=0123abcd",
            "--volume", f"{self._wheels}:/wheels:ro",
            "--target", target, "--tag", name, "--file", str(ROOT / "Dockerfile.agent"), str(ROOT),
        )  # fmt: skip
        return name

    def add(self, folder: Path, *, name: str, target: str) -> None:
        """The image `name`: the base with a folder of Python modules, found by import, at `target`."""
        container = self._buildah("from", "--pull-never", BASE).strip()
        self._buildah("copy", "--quiet", container, str(folder), target)
        self._buildah("config", "--env", f"PYTHONPATH={target}", container)
        self._buildah("commit", "--quiet", "--rm", container, name)

    def compose(self, *arguments: str, **environment: str) -> str:
        """Run podman-compose with this podman. Raises ServerFailed."""
        command = [sys.executable, "-m", "podman_compose", *arguments]
        return run(command, environment=self._podman._environment() | environment)

    def podman(self, *arguments: str) -> str:
        """Run podman. Raises ServerFailed."""
        return self._podman.podman(*arguments)

    def run(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Run a command in a confined container and return what it says."""
        return self.podman("run", "--rm", *CONFINED, *options, image, *command)

    def wait_for(self, condition: Callable[[], bool], *containers: str, what: str) -> None:
        """`wait_until` for something that containers bring. Raises ServerFailed with what they wrote."""
        try:
            wait_until(condition, what=what)
        except TimeoutError as error:
            wrote = "\n".join(self._report(each) for each in containers)
            raise ServerFailed(f"{error}\n{wrote}") from error

    def _report(self, container: str) -> str:
        """A container's state and the end of its log."""
        state = self.podman("inspect", "--format={{.State.Status}} {{.State.ExitCode}}", container)
        command = [program("podman"), "logs", "--tail=40", container]
        log = subprocess.run(
            command, env=self._podman._environment(), capture_output=True, text=True, check=False
        )
        return f"{container}, {state.strip()}:\n{log.stdout}{log.stderr}"

    def _buildah(self, *arguments: str) -> str:
        environment = self._podman._environment()
        command = [program("buildah"), *arguments]
        return run(command, environment=environment)


def answers(port: int, path: str) -> bool:
    """Whether a probe at a loopback port is answered with 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False

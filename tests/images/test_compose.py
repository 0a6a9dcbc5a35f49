"""The compose file of a Workspace, as rendered, started by podman-compose: agent, pull and server, then down again.

An override file says what is this machine's: the host's network, on whose loopback the registry is, low limits, and a
disk that may be nearly full. The server's image holds the stand-in for vLLM, which refuses to start without the model.
There is no systemd here to run health checks at their intervals, so the test has podman run each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.images.building import Workshop, answers
from tests.servers.ports import free_port
from tests.servers.process import ServerFailed
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import FAKE_ENGINE, Terminal, workspace

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.xdist_group("images")]
ENGINE = "localhost/stand-in-engine:test"
LIMITS = {each: {"soft": 1024, "hard": 1024} for each in ("nofile", "nproc")}


@dataclass(frozen=True)
class Project:
    """A rendered file, its override, and what runs of it."""

    workshop: Workshop
    folder: Path
    name: str
    port: int

    def compose(self, *arguments: str) -> str:
        files = (f"--file={self.folder / file}" for file in ("compose.yaml", "override.yaml"))
        return self.workshop.compose(*files, *arguments, DOCKER_CONFIG=str(self.folder / "docker"))

    def container(self, service: str) -> str:
        return f"{self.name}_{service}_1"

    def wait_for(self, condition: Callable[[], bool], service: str) -> None:
        """Wait for something that a service brings. Raises ServerFailed with what it wrote."""
        self.workshop.wait_for(condition, self.container(service), what=f"healthy {service}")

    def healthy(self, service: str) -> bool:
        """What the rendered health check says."""
        try:
            self.workshop.podman("healthcheck", "run", self.container(service))
        except ServerFailed:
            return False
        return True


@pytest.fixture
def project(
    workshop: Workshop,
    agent_image: str,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    tmp_root: Path,
) -> Iterator[Project]:
    """A Workspace of a small model, rendered by the command and not started."""
    workshop.add(FAKE_ENGINE, name=ENGINE, target="/engine")
    terminal, port = Terminal(tmp_root), free_port()
    checkpoint = synthetic_checkpoint(tmp_root / "checkpoint", total_bytes=4_000_000)
    model = f"{registry.host}/{unique_name('images/compose')}:v1"
    terminal.ok("build", str(checkpoint), "--to", model)
    name = f"compose{port}"
    file = workspace(tmp_root, name, model, runtime={"image": ENGINE, "port": port})
    rendered = terminal.ok("render", "-f", str(file), "--to=compose", "--agent-image", agent_image)
    (tmp_root / "compose.yaml").write_text(rendered)
    here = {
        "network_mode": "host",
        "ulimits": LIMITS,
        "environment": {"WEIGHTYARD_MIN_FREE": "0"},
    }
    services = dict.fromkeys(yaml.safe_load(rendered)["services"], here)
    (tmp_root / "override.yaml").write_text(json.dumps({"services": services}))
    (tmp_root / "docker").mkdir()
    # podman refuses a named one that isn't there
    (tmp_root / "docker" / "config.json").write_text("{}")
    project = Project(workshop, tmp_root, name, port)
    yield project
    project.compose("down", "--volumes", "--timeout=5")


def test_podman_compose_brings_a_workspace_up_and_takes_it_down(project: Project) -> None:
    """In the steps that docs/workspace.md gives."""
    podman = project.workshop.podman
    project.compose("up", "--detach", "agent")
    project.wait_for(lambda: project.healthy("agent"), "agent")
    assert not answers(project.port, "/health")
    project.compose("run", "--rm", "-T", "--no-deps", "model")
    project.compose("up", "--detach", "--no-deps", "server")
    project.wait_for(lambda: answers(project.port, "/health"), "server")
    project.wait_for(lambda: project.healthy("server"), "server")
    (cached,) = json.loads(podman("exec", project.container("agent"), "weightyard", "--json", "ls"))
    (served,) = json.loads(podman("inspect", project.container("server")))
    command = served["Config"]["Cmd"]
    key = cached["key"].rpartition(":")[2]
    assert Path(command[command.index("--model") + 1]).name == key
    project.compose("down", "--volumes", "--timeout=5")
    assert not answers(project.port, "/health")
    assert project.name not in podman("ps", "--all", "--format={{.Names}}")
    assert project.name not in podman("volume", "ls", "--quiet")

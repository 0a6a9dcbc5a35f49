"""The images, built for real and run as a restricted pod runs them: no root, no capabilities, a read-only root."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelimage.reference import RegistryReference, parse_image
from tests.cache_agent.daemon.test_agent import push
from tests.cache_agent.images import simple_image
from tests.images.building import CONFINED, Workshop, answers
from tests.servers import skopeo
from tests.servers.idle_clock import Sample, idle_seconds, read_sample
from tests.servers.ports import free_port
from tests.servers.registry import DockerRegistry

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.xdist_group("images")]

CHART = Path(__file__).parents[2] / "charts" / "weightyard"
USER = 65532
MEGABYTES = 250


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A host directory as the chart's init container leaves it."""
    path = tmp_path / "store"
    path.mkdir()
    return path


def test_programs_run_without_root_capabilities_or_a_writable_root(
    workshop: Workshop, image: str
) -> None:
    said = json.loads(workshop.run(image, "--json", "version"))
    assert said["weightyard"] == "0.1.0"
    probe = "import os; print(os.getuid(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    uid, capabilities = workshop.run(image, "-c", probe, options=("--entrypoint=python",)).split()
    assert (int(uid), int(capabilities, 16)) == (USER, 0)


@pytest.mark.parametrize("user", [USER, 1_000_720_000])
def test_programs_run_as_any_user(workshop: Workshop, image: str, user: int) -> None:
    """Some clusters run containers as a user of their choice, with group 0, that no image knows."""
    options = (f"--user={user}:{USER if user == USER else 0}", "--tmpfs=/tmp:mode=1777")
    said = json.loads(workshop.run(image, "--json", "version", options=options))
    assert said["weightyard"] == "0.1.0"
    assert "Usage" in workshop.run(image, "--help", options=options)
    probe = "import os, tempfile; tempfile.TemporaryFile(); print(os.getuid())"
    python = (*options, "--entrypoint=python")
    assert int(workshop.run(image, "-c", probe, options=python)) == user


def test_the_user_has_a_name(workshop: Workshop, image: str) -> None:
    probe = "import getpass; print(getpass.getuser())"
    name = workshop.run(image, "-c", probe, options=("--entrypoint=python",))
    assert name.strip() == "weightyard"


def test_nothing_is_in_an_image_that_its_program_does_not_need(
    workshop: Workshop, image: str
) -> None:
    script = (
        "import importlib.util as u, json; print(json.dumps([n for n in {} if u.find_spec(n)]))"
    )
    unwanted = ["torch", "pip", "pytest", "vllm", "transformers"]
    if "builder" not in image:
        unwanted += ["numba", "huggingface_hub"]
    found = workshop.run(image, "-c", script.format(unwanted), options=("--entrypoint=python",))
    assert json.loads(found) == []


def test_an_image_says_what_it_is(workshop: Workshop, image: str) -> None:
    (found,) = json.loads(workshop.podman("image", "inspect", image))
    config = found["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"] == "0123abcd"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"org.opencontainers.image.title", "org.opencontainers.image.version"} <= set(labels)
    assert config["User"] == f"{USER}:{USER}"
    assert ("Healthcheck" in found) == ("builder" not in image)


def test_an_image_lists_its_packages(workshop: Workshop, image: str) -> None:
    script = """
import importlib.metadata as m, json
listed = json.load(open('/opt/weightyard/sbom.cdx.json'))
print(json.dumps([listed['bomFormat'], sorted([c['name'], c['version']] for c in listed['components']),
    sorted([d.name, d.version] for d in m.distributions())]))
"""
    told = workshop.run(image, "-c", script, options=("--entrypoint=python",))
    kind, listed, installed = json.loads(told)
    assert kind == "CycloneDX"
    assert listed == installed


def test_an_image_is_small(workshop: Workshop, image: str, registry: DockerRegistry) -> None:
    """As registries keep it: compressed."""
    name = f"{registry.host}/{image.removeprefix('localhost/')}"
    workshop.podman(
        "push", "--quiet", "--tls-verify=false", "--remove-signatures", image, f"docker://{name}"
    )
    manifest = skopeo.inspect(f"docker://{name}", "--raw")
    size = sum(layer["size"] for layer in manifest["layers"])
    print(f"{image}: {size / 1e6:.1f} MB compressed")
    assert size < MEGABYTES * 1e6


def prepare(workshop: Workshop, image: str, *arguments: str, mount: Path) -> str:
    """The chart's init container, as it runs: root with CAP_CHOWN alone."""
    options = (
        "--user=0", "--cap-add=CHOWN", "--entrypoint=python", f"--volume={CHART / 'files'}:/files:ro",
        f"--volume={mount}:{mount}",
    )  # fmt: skip
    return workshop.run(image, "/files/prepare.py", str(USER), *arguments, options=options)


class Agent:
    """An agent in a container."""

    def __init__(self, workshop: Workshop, name: str, mirror: int, observe: int) -> None:
        self._workshop, self.name, self.mirror, self.observe = workshop, name, mirror, observe

    def answers(self, path: str) -> bool:
        return answers(self.observe, path)

    def wait(self) -> None:
        self._workshop.wait_for(lambda: self.answers("/readyz"), self.name, what="ready agent")

    def execute(self, *command: str) -> str:
        return self._workshop.podman("exec", self.name, *command)

    def processor_seconds(self) -> float:
        """What its process has used, with the children that have ended."""
        pid = self._workshop.podman("inspect", "--format", "{{.State.Pid}}", self.name).strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def idle_since(started: Sample) -> float:
    """Seconds in which the agent waited for something, and nobody else was at work."""
    return idle_seconds(started, read_sample(), cores=os.cpu_count() or 1)


@contextmanager
def running_agent(
    workshop: Workshop, image: str, store: Path, registry: DockerRegistry
) -> Iterator[Agent]:
    ports = free_port(), free_port()
    name = f"agent-{ports[0]}"
    workshop.podman(
        "run", "--detach", "--name", name, *CONFINED, f"--volume={store}:/var/lib/weightyard",
        f"--volume={CHART / 'files'}:/files:ro", image, "agent", f"--mirror=127.0.0.1:{ports[0]}",
        f"--observe=127.0.0.1:{ports[1]}", f"--registry={registry.host}", "--min-free=0",
    )  # fmt: skip
    try:
        yield Agent(workshop, name, *ports)
    finally:
        workshop.podman("rm", "--force", "--time=10", name)


def test_the_agent_pulls_serves_and_restarts_with_its_store_intact(
    workshop: Workshop,
    agent_image: str,
    store: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    model, _, _ = simple_image()
    reference = parse_image(f"{registry.host}/{unique_name('images/model')}:v1")
    assert isinstance(reference, RegistryReference)
    push(model, reference)
    prepare(workshop, agent_image, f"own:{store}", mount=store)
    with running_agent(workshop, agent_image, store, registry) as agent:
        agent.wait()
        assert agent.answers("/livez")
        agent.execute(
            "python", "-m", "weightyard.probe", f"http://127.0.0.1:{agent.observe}/readyz"
        )
        pulled = json.loads(agent.execute("weightyard", "--json", "pull", str(reference)))
        urls = (f"http://127.0.0.1:{port}" for port in (agent.observe, agent.mirror))
        smoke = ("python", "/files/smoke.py", *urls, str(reference))
        assert "every digest checked" in agent.execute(*smoke)
        workshop.podman("kill", "--signal=KILL", agent.name)
        workshop.podman("wait", agent.name)
        seconds = []  # which neither a busy machine stretches nor what podman does
        for _ in range(3):
            started = read_sample()
            workshop.podman("start", agent.name)
            agent.wait()
            seconds.append(agent.processor_seconds() + idle_since(started))
            assert pulled["key"] in agent.execute("weightyard", "--json", "ls")
            workshop.podman("stop", "--time=10", agent.name)
        print(f"container start to ready: {', '.join(f'{each:.2f}' for each in seconds)} s")
        assert min(seconds) < 6.0
        workshop.podman("start", agent.name)
        agent.wait()
        agent.execute("weightyard", "check")


def test_the_init_container_opens_directories_and_nothing_in_them(
    workshop: Workshop, agent_image: str, tmp_path: Path
) -> None:
    own, write, enter = tmp_path / "own", tmp_path / "write", tmp_path / "enter"
    for each in (own, write, enter):
        each.mkdir(mode=0o750)
        (each / "inside").write_text("")
    arguments = (f"own:{own}", f"write:{write}", f"enter:{enter}")
    assert prepare(workshop, agent_image, *arguments, mount=tmp_path).count("for user") == 3
    found = {
        each.name: (each.stat().st_uid, each.stat().st_gid, each.stat().st_mode & 0o777)
        for each in (own, write, enter)
    }
    assert found == {
        "own": (USER, USER, 0o750),
        "write": (0, USER, 0o770),
        "enter": (0, USER, 0o750),
    }
    assert all((each / "inside").stat().st_uid == 0 for each in (own, write, enter))
    assert prepare(workshop, agent_image, *arguments, mount=tmp_path) == ""

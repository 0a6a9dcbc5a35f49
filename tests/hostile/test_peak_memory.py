"""The agent's and the controller's memory under what strangers give them: below the limit that the chart sets."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from cache_agent.api.control_client import AgentClient
from cache_agent.store.paths import StorePaths
from tests.cache_agent.servers.agent_process import AgentProcess
from tests.hostile import agent_inputs, controller_inputs
from tests.hostile.agent_inputs import Attacked
from tests.hostile.controller_inputs import Cluster
from tests.hostile.servers import HostileServer
from tests.servers.process import ServerProcess, child_environment
from tests.workspace.controller import simulation
from tests.workspace.controller.living import ServedCluster

pytestmark = [pytest.mark.servers, pytest.mark.slow]
VALUES = yaml.safe_load((Path(__file__).parents[2] / "charts/weightyard/values.yaml").read_text())
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}
AGENT_LIMIT = VALUES["agent"]["memory"]["base"]
CONTROLLER_LIMIT = VALUES["controller"]["resources"]["limits"]["memory"]
SERVERS = ("mirror", "hub", "observe")


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def peak(pid: int) -> int:
    """The most memory that a process has held at a time, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", text)[1]) << 10  # type: ignore[index]


@pytest.mark.parametrize("name", agent_inputs.INPUTS)
def test_an_agent_stays_below_its_limit(name: str, tmp_path: Path) -> None:
    given = agent_inputs.INPUTS[name]
    root = tmp_path / "store"
    answers = {name: given.answers()} if given.answers else {}
    with HostileServer(answers) as hostile:
        agent = AgentProcess(
            root,
            WEIGHTYARD_TIERS__HUB__ENDPOINT=hostile.url,
            **{f"WEIGHTYARD_SERVERS__{each.upper()}": "127.0.0.1:0" for each in SERVERS},
        )
        agent.start()
        try:
            control = AgentClient(StorePaths(root).socket)
            before = peak(agent.pid)
            given.act(Attacked(control, agent.servers, hostile))
            taken = before + (peak(agent.pid) - before) / given.share
            assert not answers or hostile.requests
            assert taken < in_bytes(AGENT_LIMIT)
        finally:
            agent.stop()


def kubeconfig(path: Path, url: str) -> Path:
    """For an API server without TLS."""
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [],
    }
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("name", controller_inputs.INPUTS)
def test_a_controller_stays_below_its_limit(name: str, tmp_path: Path) -> None:
    given = controller_inputs.INPUTS[name]
    place = "metrics" if name.endswith("-metrics") else name
    answers = {place: given.answers()} if given.answers else {}
    simulated = simulation.Cluster()
    with ExitStack() as stack:
        count = controller_inputs.REGISTRIES
        servers = [stack.enter_context(HostileServer(answers)) for _ in range(count)]
        url = stack.enter_context(ServedCluster(simulated))
        registries = [each for server in servers for each in ("--registry", server.host)]
        plain = [each for server in servers for each in ("--plain-http", server.host)]
        command = [sys.executable, "-m", "weightyard.cli", "controller", "--health", "127.0.0.1:0"]
        environment = child_environment(
            tmp_path, KUBECONFIG=str(kubeconfig(tmp_path / "config", url))
        )
        controller = stack.enter_context(
            ServerProcess(
                [*command, *registries, *plain], log=tmp_path / "log", environment=environment
            )
        )
        controller.wait_for(lambda: "leading" in controller.log_text(), what="leader")
        found = re.search(r"health on 127.0.0.1:(\d+)", controller.log_text())
        assert found
        given.act(Cluster(simulated.api, servers, f"127.0.0.1:{found[1]}"))
        assert not answers or any(server.requests for server in servers)
        assert peak(controller.pid) < in_bytes(CONTROLLER_LIMIT)

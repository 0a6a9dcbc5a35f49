"""Two real vLLMs on two machines serve one model by the commands of a rendered LeaderWorkerSet, and answer as one does.

The machines are network namespaces, which share no address; the engine runs on their CPUs, with gloo between them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3

from modelimage.access import Access, open_reader
from tests.families.product import weightyard
from tests.servers.namespaces import TwoMachines
from tests.servers.process import ServerProcess, child_environment
from workspace.hardware import Hardware
from workspace.images import resolve_workspace
from workspace.render import names
from workspace.render.cluster import render_kubernetes
from workspace.render.pod import SCRATCH
from workspace.render.release import plan_release, pod_site
from workspace.render.routing import SystemSettings
from workspace.runtime_spec import GROUP_PORT
from workspace.schema import Workspace

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

Json = dict[str, Any]
MAKER: Final = Path(__file__).parents[1] / "families" / "checkpoints.py"
PROMPTS: Final = ("w7 w8 w9", "w100 w30 w12 w200 w17 w18 w19", "w42")
PORT: Final = 8000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with two layers: one for each node."""
    made = tmp_path_factory.mktemp("model")
    subprocess.run(
        [sys.executable, str(MAKER), str(made), "decoder"], check=True, capture_output=True,
        env=child_environment(made, HF_HUB_OFFLINE="1"),
    )  # fmt: skip
    return made / "decoder"


@pytest.fixture(scope="module")
def image(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    found = f"oci:{tmp_path_factory.mktemp('image')}/tiny:v1"
    weightyard("build", str(model), "--to", found)
    return found


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    with TwoMachines() as made:
        yield made


def pods(image: str, *, nodes: int) -> list[Json]:
    """The pod templates of a server, the leader's first."""
    workspace = Workspace.model_validate(
        {
            "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "tiny"},
            "spec": {"model": {"image": image}, "resources": {"gpus": 0, "nodes": nodes}},
        }
    )  # fmt: skip
    access = Access()
    resolved = resolve_workspace(workspace, lambda reference: open_reader(reference, access))
    release = plan_release(workspace, resolved, hardware=Hardware(), site_of=pod_site(workspace))
    kept = render_kubernetes(workspace, release, SystemSettings())[-1]["spec"]
    if nodes == 1:
        return [kept["template"]]
    group = kept["leaderWorkerTemplate"]
    assert group["size"] == nodes
    return [group["leaderTemplate"], *[group["workerTemplate"]] * (nodes - 1)]


@contextmanager
def running(
    machines: TwoMachines, templates: list[Json], *, model: Path, home: Path
) -> Iterator[list[ServerProcess]]:
    """The pods' containers, one on each machine. The workers start first, and wait for the leader."""
    # vLLM's command asks for its own version by the name of the package, which the CPU build lacks.
    version = home / "vllm-0.32.0+cpu.dist-info"
    version.mkdir()
    (version / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    with ExitStack() as stack:
        started = []
        for number, template in reversed(list(enumerate(templates))):
            (container,) = template["spec"]["containers"]
            told = {"LWS_LEADER_ADDRESS": machines.ADDRESSES[0], "LWS_WORKER_INDEX": str(number)}
            words = [*container["command"], *container["args"]]
            for name, value in told.items():
                words = [word.replace(f"$({name})", value) for word in words]
            # What kubelet mounts is a directory here.
            words = [str(model) if word == names.MODEL_DIR else word for word in words]
            place = home / str(number)
            place.mkdir()
            own = {
                each["name"]: each["value"].replace(SCRATCH, str(place))
                for each in container["env"]
            }
            # In a pod the host's name is its address, and its Python has vLLM.
            environment = {
                **own,
                **child_environment(place, PYTHONPATH=str(home)),
                "GLOO_SOCKET_IFNAME": "eth0",
                "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            }
            process = ServerProcess(
                machines.command(number, *words), log=place / "log", environment=environment
            )
            started.append(stack.enter_context(process))
        yield started[::-1]


def answers(machines: TwoMachines, processes: list[ServerProcess]) -> tuple[list[str], list[float]]:
    """Greedy completions once the leader is healthy, and their log probabilities, asked from the last machine."""
    leader = processes[0]
    with machines.on(0 if len(processes) == 1 else 1), urllib3.PoolManager(retries=False) as http:
        url = f"http://{machines.ADDRESSES[0]}:{PORT}"

        def is_healthy() -> bool:
            for each in processes[1:]:
                assert each.is_running(), each.log_text()[-4000:]
            try:
                return http.request("GET", f"{url}/health", timeout=2.0).status == 200
            except urllib3.exceptions.HTTPError:
                return False

        leader.wait_for(is_healthy, what="healthy answer")
        tokens: list[str] = []
        numbers: list[float] = []
        for prompt in PROMPTS:
            asked = {
                "model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": True,
                "logprobs": 1,
            }  # fmt: skip
            answer = http.request("POST", f"{url}/v1/completions", json=asked)
            assert answer.status == 200, answer.data
            (choice,) = json.loads(answer.data)["choices"]
            tokens += choice["logprobs"]["tokens"]
            numbers += choice["logprobs"]["token_logprobs"]
    return tokens, numbers


def test_two_nodes_answer_as_one(
    machines: TwoMachines, image: str, model: Path, tmp_root: Path
) -> None:
    (tmp_root / "one").mkdir()
    (tmp_root / "two").mkdir()
    templates = pods(image, nodes=2)
    with running(machines, templates, model=model, home=tmp_root / "two") as processes:
        tokens, numbers = answers(machines, processes)
        # Each has its own part of the layers, and knows where the leader is.
        assert f"tcp://{machines.ADDRESSES[0]}:{GROUP_PORT}" in processes[1].log_text()
        assert "world_size=2 rank=1" in processes[1].log_text()
    with running(machines, pods(image, nodes=1), model=model, home=tmp_root / "one") as processes:
        expected_tokens, expected_numbers = answers(machines, processes)
    assert tokens == expected_tokens
    assert numbers == pytest.approx(expected_numbers, abs=1e-3)
    assert len(set(tokens)) > 2, "a model that says nothing"

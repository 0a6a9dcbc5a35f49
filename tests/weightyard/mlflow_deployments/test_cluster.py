"""Deployments in a namespace: the real controller at work on a simulated cluster, reached through a stand-in kubectl.

Images are told and not built, but where a registry is used: that is the builder's own subject.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from modelimage.digest import Digest
from modelimage.errors import Busy, InvalidCheckpoint
from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.registry import DockerRegistry
from tests.weightyard.mlflow_deployments.conftest import Registry
from tests.weightyard.mlflow_deployments.test_local import refused
from tests.workspace import samples
from tests.workspace.controller import living
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.statuses import failure
from weightyard.cli import main
from weightyard.kubectl import Kubectl
from weightyard.mlflow_deployments import client as client_module
from weightyard.mlflow_deployments import cluster as cluster_module
from weightyard.mlflow_deployments import verdict
from weightyard.mlflow_deployments.cluster import ClusterBackend
from weightyard.mlflow_deployments.images import PublishedModel
from weightyard.python_api.progress_console import progress_console

PROGRAMS = Path(__file__).parent / "programs"
TARGET = f"weightyard:/{NAMESPACE}"
CONFIG = {"registry": "registry.example/team", "gpu": "L4"}
V1, V2 = "models:/chat/1", "models:/chat/2"


class Engine(LoopbackServer):
    """A server of completions, chats and streams; `asked` are the bodies, `status` other than 200 refuses."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status = 200

    class HANDLER(Handler):
        def do_POST(self) -> None:
            engine = cast("Engine", cast("Any", self.server).owner)
            assert self.headers["Content-Type"] == "application/json", "vLLM refuses others"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            engine.asked.append(body)
            if engine.status != 200:
                refusal = {"error": {"message": "max_tokens is too large"}}
                self.answer(engine.status, json.dumps(refusal).encode())
            elif body.get("stream"):
                parts = [{"choices": [{"text": word}]} for word in ("Pa", "ris")]
                lines = [*(f"data: {json.dumps(each)}" for each in parts), "data: [DONE]"]
                self.answer(200, "\n\n".join([*lines, ""]).encode())
            elif self.path == "/v1/chat/completions":
                self.answer(200, b'{"choices": [{"message": {"content": "hello"}}]}')
            else:
                self.answer(200, json.dumps({"choices": [{"text": body["prompt"]}]}).encode())


class Api(HttpApi):
    """The strict API server with namespaces, and with refusals of Workspaces that a test asks for."""

    namespaces = (NAMESPACE, "empty")
    refusals: dict[tuple[str, str], tuple[int, str]] = {}  # noqa: RUF012 # patched by tests

    async def _any(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        refusal = self.refusals.get((request.method, parts[-1]))
        if refusal is not None:
            return failure(*refusal)
        if parts[:3] == ["api", "v1", "namespaces"] and len(parts) == 4:
            known = parts[3] in self.namespaces
            return (
                web.json_response({"kind": "Namespace"})
                if known
                else failure(404, f'namespaces "{parts[3]}" not found')
            )
        return await super()._any(request)


def published(model: Any, name: str, values: Any, _: Any) -> PublishedModel:
    """An image that is as good as built: each source and choice of variants has a digest of its own."""
    variants = ("bf16", *(values.get("variants") or ()))
    digest = Digest.of(f"{model.source} {variants}".encode())
    return PublishedModel(f"{name}@{digest}", variants, {})


@pytest.fixture
def cluster() -> Cluster:
    """Four nodes with a GPU each."""
    made = Cluster()
    for number in range(4):
        made.add_node(f"n{number}")
    return made


@pytest.fixture
def served(
    cluster: Cluster, models: Registry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Serves the cluster, with the controller unless a test wants none, and puts kubectl on PATH."""
    monkeypatch.setattr(living, "HttpApi", Api)
    monkeypatch.setattr(Api, "refusals", {})
    monkeypatch.setattr(cluster_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "publish", published)
    with ExitStack() as stack:

        def serve(*, alive: bool = True) -> None:
            url = stack.enter_context(ServedCluster(cluster, alive=alive))
            point_kubectl_at(url, monkeypatch)
            raw = Path(living.__file__).parent / "kubectl"
            monkeypatch.setenv("KUBECTL_RAW", str(raw))
            monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")

        yield serve


def test_a_version_is_served_updated_and_deleted(
    cluster: Cluster, served: Callable[..., None], models: Registry, deployments: Any
) -> None:
    served()
    client = deployments(TARGET)
    made = client.create_deployment("chat", "models:/chat@champion", config={**CONFIG, "replicas": "2"})  # fmt: skip
    assert (made["state"], made["ready_replicas"], made["version"]) == ("Ready", 2, "1")
    assert made["image"].startswith("registry.example/team/chat:v1@sha256:")
    assert (made["run_id"], made["url"]) == (models.run, "http://chat.team-a.svc")
    assert models.tags("1") == {
        "weightyard.image": made["image"],
        "weightyard.variants": "bf16",
        "weightyard.deployment.team-a.chat": TARGET,
    }
    with refused("RESOURCE_ALREADY_EXISTS", "there is chat already"):
        client.create_deployment("chat", V2, config=CONFIG)

    # Whoever scales it by hand isn't overruled by an update that is about something else.
    cluster.api.update("Workspace", NAMESPACE, NAME, lambda document: document["spec"].update(replicas=1))  # fmt: skip
    models.promote("2")
    updated = client.update_deployment("chat")
    assert (updated["state"], updated["version"], updated["ready_replicas"]) == ("Ready", "2", 1)
    assert "weightyard.deployment.team-a.chat" in models.tags("2")
    assert "weightyard.deployment.team-a.chat" not in models.tags("1")
    writes = len(cluster.api.writes)
    client.update_deployment("chat")
    assert not [each for each in cluster.api.writes[writes:] if "Workspace" in each]
    assert client.update_deployment("chat", config={"replicas": 3})["ready_replicas"] == 3
    assert [each["name"] for each in client.list_deployments()] == ["chat"]

    client.delete_deployment("chat")
    client.delete_deployment("chat")
    assert client.list_deployments() == []
    assert cluster.api.list("Workspace") == []
    assert "weightyard.deployment.team-a.chat" not in models.tags("2")


def test_predictions_come_through_kubectl(
    served: Callable[..., None], deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served()
    client = deployments(TARGET)
    client.create_deployment("chat", V1, config=CONFIG)
    with refused(
        "TEMPORARILY_UNAVAILABLE", "chat can't be reached: .*timed out waiting for the condition"
    ):
        client.predict("chat", "a")
    with Engine() as engine:
        monkeypatch.setenv("FORWARD_TO", engine.host)
        many = [f"prompt {number}" for number in range(20)]
        assert client.predict("chat", many)["predictions"] == many
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = client.predict("chat", chat)
        assert answer.to_json() == json.dumps(dict(answer))
        assert answer["predictions"] == ["hello"]
        assert engine.asked[-1] == {"model": "chat", **chat}
        parts = client.predict_stream("chat", {"prompt": "a"})
        assert [each["choices"][0]["text"] for each in parts] == ["Pa", "ris"]
        codes = {
            400: "INVALID_PARAMETER_VALUE",
            500: "INTERNAL_ERROR",
            503: "REQUEST_LIMIT_EXCEEDED",
        }
        for status, code in codes.items():
            engine.status = status
            with refused(code, "max_tokens is too large"):
                client.predict("chat", "a")


def test_a_canary_that_is_aborted_is_told_and_the_version_before_serves(
    cluster: Cluster, served: Callable[..., None], models: Registry, deployments: Any, tmp_path: Path
) -> None:  # fmt: skip
    file = tmp_path / "base.yaml"
    spec = {
        "model": {"image": "registry.example/any:v1"},
        "resources": {"gpu": "L4"},
        "replicas": 1,
        "rollout": {"strategy": "canary", "steps": [{"weight": 25}, {"pause": {}}]},
    }
    file.write_text(json.dumps(samples.document("x", **spec)))
    served()
    client = deployments(TARGET)
    client.create_deployment("chat", V1, config={**CONFIG, "workspace": str(file)})

    def abort() -> None:
        while "Paused" not in json.dumps(
            cluster.api.get("Workspace", NAMESPACE, NAME).get("status")
        ):
            time.sleep(0.02)
        assert main(["--quiet", "rollout", "abort", NAME, "-n", NAMESPACE]) == 0

    person = threading.Thread(target=abort)
    person.start()
    with refused("ABORTED", r"chat doesn't serve: Aborted: .*weightyard explain chat -n team-a"):
        client.update_deployment("chat", V2)
    person.join()
    assert "weightyard.deployment.team-a.chat" in models.tags("1")
    assert "weightyard.deployment.team-a.chat" not in models.tags("2")
    assert client.get_deployment("chat")["state"] == "Aborted"
    # What was taken back isn't tried again by itself, and the version before is one update away.
    with refused("ABORTED", "Aborted"):
        client.update_deployment("chat", V2)
    assert client.update_deployment("chat", V1)["state"] == "Ready"


def test_what_is_refused_leaves_no_workspace(
    cluster: Cluster, served: Callable[..., None], deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(alive=False)
    client = deployments(TARGET)
    with refused("INVALID_PARAMETER_VALUE", "none is named.*registry=registry.example/team"):
        client.create_deployment("chat", V1)
    with refused("INVALID_PARAMETER_VALUE", "strategy"):
        client.create_deployment("chat", V1, config={**CONFIG, "strategy": "green"})
    with refused("INVALID_PARAMETER_VALUE", "weightyard:/local"):
        client.create_deployment("chat", V1, config={**CONFIG, "port": 8000})
    with refused("RESOURCE_DOES_NOT_EXIST", "there is no namespace local.*weightyard:/local"):
        deployments("weightyard://any/local").create_deployment("chat", V1, config=CONFIG)
    deployments("weightyard:/gone").delete_deployment("chat")
    monkeypatch.setitem(Api.refusals, ("POST", "workspaces"), (403, "exceeded quota: workspaces"))
    with refused("PERMISSION_DENIED", "exceeded quota"):
        client.create_deployment("chat", V1, config=CONFIG)
    monkeypatch.setitem(Api.refusals, ("POST", "workspaces"), (422, "admission webhook: no"))
    with refused("INVALID_PARAMETER_VALUE", "admission webhook"):
        client.create_deployment("chat", V1, config=CONFIG)
    monkeypatch.setitem(Api.refusals, ("GET", "workspaces"), (404, "no workspaces"))
    with refused("INVALID_PARAMETER_VALUE", "this cluster has no Workspaces"):
        client.list_deployments()

    def unbuildable(*_: Any) -> PublishedModel:
        raise InvalidCheckpoint("a tensor is truncated", hint="Log the model again.")

    monkeypatch.setattr(Api, "refusals", {})
    monkeypatch.setattr(client_module, "publish", unbuildable)
    with refused("BAD_REQUEST", r"a tensor is truncated\. Log the model again"):
        client.create_deployment("chat", V1, config=CONFIG)
    assert cluster.api.list("Workspace") == []


def test_who_may_not_read_namespaces_deploys_all_the_same(
    served: Callable[..., None], deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served()
    monkeypatch.setitem(Api.refusals, ("GET", NAMESPACE), (403, "forbidden"))
    assert deployments(TARGET).create_deployment("chat", V1, config=CONFIG)["state"] == "Ready"


def test_conditions_that_stay_end_the_wait_with_their_words(
    cluster: Cluster, served: Callable[..., None], models: Registry, deployments: Any
) -> None:
    served()
    client = deployments(TARGET)
    with refused("ABORTED", "chat doesn't serve: UnknownVariant: .*weightyard explain chat"):
        client.create_deployment("chat", V1, config={**CONFIG, "variant": "awq"})
    # It stays, and an update repairs it.
    assert "weightyard.deployment.team-a.chat" not in models.tags("1")
    assert client.update_deployment("chat", config={"variant": ""})["state"] == "Ready"


def test_no_controller_and_a_timeout_are_told(
    served: Callable[..., None], deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(alive=False)
    client = deployments(TARGET)
    with refused("DEADLINE_EXCEEDED", "chat doesn't serve after 0.2 s: NoController"):
        client.create_deployment("chat", V1, config={**CONFIG, "timeout": "0.2"})
    monkeypatch.setattr(verdict, "PATIENCE", 0.2)
    with refused("ABORTED", "no controller has looked at the Workspace yet"):
        client.update_deployment("chat")


def test_an_interrupt_leaves_a_deployment_that_goes_on(
    served: Callable[..., None], deployments: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    served()
    client = deployments(TARGET)
    decided = verdict.Judge.judge

    def interrupted(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(verdict.Judge, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.create_deployment("chat", V1, config=CONFIG)
    assert "chat goes on in team-a" in caplog.text
    monkeypatch.setattr(verdict.Judge, "judge", decided)
    assert client.update_deployment("chat")["state"] == "Ready"


def test_workspaces_that_others_made_are_left_alone(
    cluster: Cluster, served: Callable[..., None], deployments: Any
) -> None:
    cluster.create_workspace()
    served()
    client = deployments(TARGET)
    assert client.list_deployments() == []
    with refused("RESOURCE_ALREADY_EXISTS", "there is chat already"):
        client.create_deployment("chat", V1, config=CONFIG)
    for call in (client.update_deployment, client.delete_deployment, client.get_deployment):
        with refused("INVALID_PARAMETER_VALUE", "wasn't deployed through MLflow"):
            call("chat")


@pytest.mark.servers
def test_the_image_is_built_pushed_and_found_again(
    served: Callable[..., None], models: Registry, deployments: Any, monkeypatch: pytest.MonkeyPatch,
    registry: DockerRegistry, unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    served()
    from weightyard.mlflow_deployments.images import publish  # noqa: PLC0415

    monkeypatch.setattr(client_module, "publish", publish)
    config = {**CONFIG, "registry": f"{registry.host}/{unique_name('mlflow')}", "variants": "int8"}
    made = deployments(TARGET).create_deployment("chat", V1, config=config)
    assert made["image"].startswith(f"{config['registry']}/chat:v1.int8@sha256:")
    tags = models.tags("1")
    assert (tags["weightyard.image"], tags["weightyard.variants"]) == (made["image"], "bf16,int8")
    assert "signal to noise" in tags["weightyard.quality.int8"]
    with refused("INVALID_PARAMETER_VALUE", "UPPER"):
        deployments(TARGET).update_deployment("chat", V2, config={"registry": "a.example/UPPER"})


class Busier(Kubectl):
    """A cluster whose controller writes a status before each of the first writes; `edits` the spec too, if asked."""

    def __init__(self, writes: int, edits: dict[str, Any]) -> None:
        super().__init__()
        self.left, self.edits, self.version = writes, edits, 1
        self.document = {
            "metadata": {"name": "chat", "resourceVersion": "1"},
            "spec": {"replicas": 1},
        }

    def get(self, path: str) -> dict[str, Any]:
        return {**self.document, "metadata": {"name": "chat", "resourceVersion": str(self.version)}}

    def replace(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        if self.left:
            self.left -= 1
            self.version += 1
            self.document["spec"] = {**self.document["spec"], **self.edits}
        if document["metadata"]["resourceVersion"] != str(self.version):
            raise Busy("the object has been modified")
        return document


def written(cluster: Busier) -> dict[str, Any]:
    """What becomes of a change to two replicas."""
    before = cluster.get("")
    backend = ClusterBackend(cluster, NAMESPACE, progress_console(progress=False))
    return backend._write({**before, "spec": {"replicas": 2}}, before)


def test_a_status_that_is_written_meanwhile_is_no_obstacle() -> None:
    assert written(Busier(3, {}))["spec"] == {"replicas": 2}


def test_an_edit_that_is_made_meanwhile_is_not_lost() -> None:
    with pytest.raises(Busy):
        written(Busier(1, {"replicas": 5}))


def test_a_write_ends_on_a_cluster_that_never_rests() -> None:
    with pytest.raises(Busy):
        written(Busier(10_000, {}))

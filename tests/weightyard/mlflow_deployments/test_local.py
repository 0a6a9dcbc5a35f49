"""The target `weightyard:/local`: servers of this machine, with the stand-in for vLLM."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import weightyard
from modelimage.layout import Layout
from tests.weightyard.mlflow_deployments.conftest import Registry
from tests.weightyard.mlflow_deployments.test_plugin import plugins as plugins  # noqa: PLC0414 - a fixture
from tests.weightyard.test_up import healthy

CPU = {"gpus": "0"}


def refused(code: str, says: str) -> Any:
    """MLflow's error with a code and words."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 # takes seconds

    return pytest.raises(MlflowException, match=says, check=lambda error: error.error_code == code)


@pytest.mark.slow
def test_a_version_is_served_asked_updated_and_deleted(
    models: Registry, deployments: Any, mlflow_home: Path
) -> None:
    client = deployments()
    made = client.create_deployment("chat", "models:/chat@champion", config=CPU)
    assert (made["name"], made["state"]) == ("chat", "ready")
    assert (made["version"], made["run_id"]) == ("1", models.run)
    assert healthy(made["url"])
    answer = client.predict("chat", {"prompt": "The capital of France is", "max_tokens": 4})
    assert answer["predictions"] == [" Paris"]
    assert client.predict("chat", ["a", "b"])["predictions"] == [" Paris", " Paris"]

    # The image says where it comes from, and the version where it went.
    tags = models.tags("1")
    assert tags["weightyard.image"] == made["image"]
    assert tags["weightyard.variants"] == "bf16"
    assert tags["weightyard.deployment.local.chat"] == "weightyard:/local"
    (record,) = [
        json.loads(path.read_text()) for path in (mlflow_home / "root").rglob("weightyard.json")
    ]
    assert record["source"] == {"uri": "mlflow:models:/chat", "revision": "1"}
    assert record["extra"] == {"mlflowRun": models.run}
    assert "v1" in Layout(mlflow_home / "root" / "mlflow" / "chat").tags()

    with refused("RESOURCE_ALREADY_EXISTS", "there is chat already"):
        client.create_deployment("chat", "models:/chat/2", config=CPU)

    # Nothing moved: nothing is started anew.
    assert client.update_deployment("chat")["url"] == made["url"]
    models.promote("2")
    updated = client.update_deployment("chat")
    assert (updated["version"], updated["flavor"]) == ("2", "transformers")
    assert updated["image"] != made["image"]
    assert "weightyard.deployment.local.chat" in models.tags("2")
    assert "weightyard.deployment.local.chat" not in models.tags("1")
    assert [each["name"] for each in client.list_deployments()] == ["chat"]

    client.delete_deployment("chat")
    client.delete_deployment("chat")
    assert not healthy(updated["url"])
    assert client.list_deployments() == []
    assert "weightyard.deployment.local.chat" not in models.tags("2")
    for call in (client.get_deployment, client.update_deployment, lambda n: client.predict(n, "a")):
        with refused("RESOURCE_DOES_NOT_EXIST", "there is no deployment chat"):
            call("chat")


@pytest.mark.slow
def test_a_version_that_does_not_start_is_taken_back(
    models: Registry, deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = deployments()
    client.create_deployment("chat", "models:/chat/1", config=CPU)
    # The version before is started again in the same process, by which time the fault is gone.
    from weightyard.mlflow_deployments import local  # noqa: PLC0415

    serve = local.serve

    def failing(document: Any, **options: Any) -> Any:
        monkeypatch.setattr(local, "serve", serve)
        monkeypatch.setenv("FAKE_ENGINE", "dies")
        try:
            return serve(document, **options)
        finally:
            monkeypatch.setenv("FAKE_ENGINE", "")

    monkeypatch.setattr(local, "serve", failing)
    with refused(
        "ABORTED", "serves its version before again.*No available memory for the cache blocks"
    ):
        client.update_deployment("chat", "models:/chat/2")
    found = client.get_deployment("chat")
    assert (found["state"], found["version"]) == ("ready", "1")
    assert "weightyard.deployment.local.chat" in models.tags("1")


def test_what_never_served_leaves_the_name_free(
    models: Registry, deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = deployments()
    monkeypatch.setenv("FAKE_ENGINE", "dies")
    with refused("INTERNAL_ERROR", "No available memory"):
        client.create_deployment("chat", "models:/chat/1", config=CPU)
    assert client.list_deployments() == []
    monkeypatch.setenv("FAKE_ENGINE", "")
    assert client.create_deployment("chat", "models:/chat/1", config=CPU)["state"] == "ready"


def test_an_interrupt_stops_what_was_starting(
    models: Registry, deployments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = deployments()
    client.create_deployment("chat", "models:/chat/1", config=CPU)
    from weightyard.mlflow_deployments import local  # noqa: PLC0415

    def interrupted(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)

    serve = local.serve
    monkeypatch.setattr(local, "serve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.update_deployment("chat", "models:/chat/2")
    monkeypatch.setattr(local, "serve", serve)
    assert client.get_deployment("chat")["state"] == "stopped"
    with refused("ABORTED", "chat doesn't run"):
        client.predict("chat", "a")
    again = client.update_deployment("chat")
    assert (again["state"], again["version"]) == ("ready", "1")


def test_a_server_that_others_started_is_left_alone(
    models: Registry, deployments: Any, mlflow_home: Path
) -> None:
    client = deployments()
    with weightyard.serve(mlflow_home / "v1", name="chat", cpu=True):
        with refused("RESOURCE_ALREADY_EXISTS", "there is chat already"):
            client.create_deployment("chat", "models:/chat/1", config=CPU)
        assert client.list_deployments() == []
        for call in (client.update_deployment, client.delete_deployment, client.get_deployment):
            with refused("INVALID_PARAMETER_VALUE", "wasn't deployed through MLflow"):
                call("chat")


def test_a_registry_that_may_only_be_read_is_a_warning(
    models: Registry, deployments: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    from mlflow import MlflowClient  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    def read_only(*_: Any) -> None:
        raise MlflowException("read-only")

    monkeypatch.setattr(MlflowClient, "set_model_version_tag", read_only)
    assert deployments().create_deployment("chat", "models:/chat/1", config=CPU)["state"] == "ready"
    assert "can't tag version 1 of chat: read-only" in caplog.text


@pytest.mark.slow
def test_a_run_is_served_and_variants_are_measured_and_told(
    models: Registry, deployments: Any, mlflow_home: Path
) -> None:
    models.client.log_artifacts(models.run, str(mlflow_home / "v1"), "model")
    client = deployments()
    made = client.create_deployment("of-run", f"runs:/{models.run}/model", config=CPU)
    assert (made["run_id"], made["version"], made["state"]) == (models.run, "", "ready")
    config = {**CPU, "variants": "int8", "variant": "int8"}
    client.create_deployment("chat", "models:/chat/1", config=config)
    assert client.get_deployment("chat")["variant"] == "int8"
    tags = models.tags("1")
    assert tags["weightyard.variants"] == "bf16,int8"
    assert "signal to noise" in tags["weightyard.quality.int8"]
    # The variants are kept for the next version.
    client.update_deployment("chat", "models:/chat/2")
    assert models.tags("2")["weightyard.variants"] == "bf16,int8"


@pytest.mark.slow
def test_mlflows_own_command_line(models: Registry, plugins: Any, deployments: Any) -> None:
    from mlflow.deployments.cli import commands  # noqa: PLC0415

    deployments()

    def run(*words: str) -> str:
        done = CliRunner().invoke(commands, list(words))
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    target = ("-t", "weightyard:/local", "--name", "chat")
    assert "transformers deployment chat is created" in run(
        "create", *target, "-m", "models:/chat@champion", "-C", "gpus=0"
    )
    models.promote("2")
    assert "is updated (with flavor transformers)" in run("update", *target)
    assert "version: 2" in run("get", *target)
    assert "'name': 'chat'" in run("list", "-t", "weightyard:/local")
    assert "is deleted" in run("delete", *target)
    run("run-local", *target, "-m", "models:/chat/1", "-C", "gpus=0")
    run("delete", *target)

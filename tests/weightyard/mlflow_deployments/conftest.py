"""An MLflow registry in files, with two versions of `chat`, and what the stand-ins need."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers.process import child_environment
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import FAKE_ENGINE
from weightyard.mlflow_deployments import WeightyardDeploymentClient


@dataclass(frozen=True)
class Registry:
    """`client` is MLflow's own; `run` made both versions, of which `champion` names the first."""

    client: Any
    run: str

    def tags(self, version: str) -> dict[str, str]:
        """A version's tags."""
        return dict(self.client.get_model_version("chat", version).tags)

    def promote(self, version: str) -> None:
        """Move the alias."""
        self.client.set_registered_model_alias("chat", "champion", version)


@pytest.fixture
def mlflow_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine with a home, a store and a working directory of its own, and a stand-in for vLLM."""
    for name, value in child_environment(tmp_path, PYTHONPATH=str(FAKE_ENGINE)).items():
        monkeypatch.setenv(name, value)
    # Never the same address: MLflow remembers stores by it, and pytest gives directories again.
    store = Path(tempfile.mkdtemp(prefix="store-", dir=tmp_path)).as_uri()
    for name, value in {
        "WEIGHTYARD_ROOT": str(tmp_path / "root"),
        "FAKE_ENGINE": "",
        "FAKE_ENGINE_ANSWER": " Paris",
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def models(mlflow_home: Path) -> Registry:
    """`chat` in versions 1 and 2, each a checkpoint in a directory."""
    from mlflow import MlflowClient  # noqa: PLC0415 # takes seconds, which every run's collection would pay

    client = MlflowClient()
    run = client.create_run(client.create_experiment("chats")).info.run_id
    client.create_registered_model("chat")
    for number in (1, 2):
        folder = mlflow_home / f"v{number}"
        checkpoint = synthetic_checkpoint(folder, total_bytes=400_000, seed=number)
        client.create_model_version("chat", checkpoint.as_uri(), run_id=run)
    made = Registry(client, run)
    made.promote("1")
    return made


@pytest.fixture
def deployments() -> Iterator[Callable[[str], WeightyardDeploymentClient]]:
    """Gives clients of targets; what they deployed on this machine is gone afterwards."""
    made: list[WeightyardDeploymentClient] = []

    def client(target: str = "weightyard:/local") -> WeightyardDeploymentClient:
        made.append(WeightyardDeploymentClient(target))
        return made[-1]

    yield client
    for each in made:
        if each.target_uri == "weightyard:/local":
            for deployment in each.list_deployments():
                each.delete_deployment(deployment["name"])

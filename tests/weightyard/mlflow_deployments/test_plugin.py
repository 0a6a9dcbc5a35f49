"""MLflow itself finds the plugin, checks it, and shows its help; every error is one of MLflow's."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelimage import errors
from weightyard.exits import RelayedError
from weightyard.mlflow_deployments.config import KEYS
from weightyard.mlflow_deployments.deployment_errors import as_mlflow, error_code
from weightyard.mlflow_deployments.target_uri import FORMS

REPOSITORY = Path(__file__).parents[3]
LOADED = """
import json, sys
import mlflow.deployments.base
before = set(sys.modules)
import weightyard.mlflow_deployments
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture
def plugins(mlflow_home: Path) -> Any:
    """MLflow's plugin manager with the entry point that pyproject declares: installed metadata may be older."""
    from mlflow.deployments import interface  # noqa: PLC0415 # takes seconds

    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for name, module in declared["project"]["entry-points"]["mlflow.deployments"].items():
        interface.plugin_store.register(name, module)
    return interface.plugin_store


def test_mlflow_finds_the_plugin_and_accepts_it(plugins: Any) -> None:
    import mlflow.deployments  # noqa: PLC0415

    client = mlflow.deployments.get_deploy_client("weightyard:/local")
    assert type(client).__name__ == "WeightyardDeploymentClient"
    assert client.list_deployments() == []
    module = plugins["weightyard:/team-a"]
    assert callable(module.run_local)


def test_help_tells_every_target_and_key(plugins: Any) -> None:
    from mlflow.deployments.cli import commands  # noqa: PLC0415

    done = CliRunner().invoke(commands, ["help", "-t", "weightyard"])
    assert done.exit_code == 0, done.output
    for name in (*(key.name for key in KEYS), *(form for form, _ in FORMS)):
        assert f"  {name} " in done.output


def test_the_page_has_every_target_and_key() -> None:
    page = (REPOSITORY / "docs" / "mlflow.md").read_text()
    for key in KEYS:
        assert f"| `{key.name}` | {key.default} | {key.meaning} |" in page
    for form, meaning in FORMS:
        assert f"| `{form}` | {meaning} |" in page


def test_it_loads_what_it_needs_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    loaded = {each.partition(".")[0] for each in json.loads(done.stdout.splitlines()[-1])}
    heavy = {"huggingface_hub", "boto3", "numpy", "numba", "pandas", "aiohttp", "rich", "torch"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({"config": {"replica": 1}}, "INVALID_PARAMETER_VALUE"),
        ({"flavor": "sklearn"}, "INVALID_PARAMETER_VALUE"),
        ({"endpoint": "e"}, "INVALID_PARAMETER_VALUE"),
        ({"name": "../up"}, "INVALID_PARAMETER_VALUE"),
        ({"name": "Upper"}, "INVALID_PARAMETER_VALUE"),
        ({"model_uri": "models:/gone/1"}, "RESOURCE_DOES_NOT_EXIST"),
        ({"model_uri": "s3://bucket/x"}, "INVALID_PARAMETER_VALUE"),
        ({"config": {"workspace": "gone.yaml"}}, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
def test_a_wrong_call_is_an_error_of_mlflow(
    models: Any, deployments: Any, call: dict[str, Any], code: str
) -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    with pytest.raises(MlflowException) as caught:
        deployments().create_deployment(**{"name": "c", "model_uri": "models:/chat/1", **call})
    assert caught.value.error_code == code
    assert deployments().list_deployments() == []


def test_a_target_that_means_nothing_is_refused_by_the_client(deployments: Any) -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    with pytest.raises(MlflowException, match="Write one of weightyard:/NAMESPACE"):
        deployments("weightyard:team")


def test_every_error_has_a_code_that_mlflow_knows() -> None:
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, ErrorCode  # noqa: PLC0415

    kinds = [
        each for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.WeightyardError) and each is not errors.WeightyardError
    ]  # fmt: skip
    for kind in kinds:
        code = error_code(kind("what happened"))
        assert ErrorCode.Name(code)
        assert (code == INTERNAL_ERROR) is (kind is errors.EngineFailed)
    relayed = RelayedError("from another process", hint=None, code=10, kind="NoSpace")
    assert error_code(relayed) == error_code(errors.NoSpace("here"))


def test_message_and_hint_are_told_and_a_missing_extra_is_named() -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    with pytest.raises(MlflowException, match=r"^It broke\. Mend it\.$"), as_mlflow():
        raise errors.NotFound("It broke.", hint="Mend it.")
    with pytest.raises(MlflowException, match=r"'boto3'.*\[builder\]"), as_mlflow():
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")
    with pytest.raises(ModuleNotFoundError), as_mlflow():
        raise ModuleNotFoundError("No module named 'ours'", name="ours")

"""The action for GitHub and the component for GitLab: valid by their schemas; their scripts build, sign and push."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelimage.child import python_module
from tests.servers.process import child_environment
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github/actions/model-image/action.yml"
COMPONENT = ROOT / ".gitlab/model-image.yml"
Json = dict[str, Any]


def accepted(schema: str, path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def action() -> Json:
    found: Json = yaml.safe_load(ACTION.read_text())
    return found


def component(inputs: Mapping[str, str]) -> tuple[Json, str]:
    """What the component declares, and its jobs with these inputs in their places."""
    header, _, jobs = COMPONENT.read_text().partition("\n---\n")
    declared: Json = yaml.safe_load(header)["spec"]["inputs"]
    values = {name: inputs.get(name, each.get("default")) for name, each in declared.items()}
    return declared, re.sub(
        r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: json.dumps(values[found[1]]), jobs
    )


def test_github_accepts_the_action() -> None:
    accepted("vendor.github-actions", ACTION)


def test_gitlab_accepts_the_component(tmp_path: Path) -> None:
    _, jobs = component({"source": "hf://a/b", "image": "r.example/m:v1", "weightyard": "w"})
    path = tmp_path / "jobs.yml"
    path.write_text(jobs)
    accepted("vendor.gitlab-ci", path)


def test_actions_are_named_by_commit() -> None:
    """A tag can be moved to other code, which would run with the job's rights."""
    used = re.findall(r"uses:\s*(.*)", ACTION.read_text())
    assert used
    for each in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)


def test_inputs_reach_scripts_as_variables_only() -> None:
    """As text of a script, whatever somebody chose would be run."""
    for step in action()["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    job = yaml.safe_load(component({})[1])["model-image"]
    for line in [*job["before_script"], *job["script"]]:
        assert "$[[" not in line


def test_both_take_the_same_inputs() -> None:
    own = {"weightyard", "stage", "job-image"}
    secrets = {"signing-key", "signing-key-password"}  # of GitLab, variables
    declared, _ = component({})
    assert set(declared) - own == set(action()["inputs"]) - secrets
    for name in set(declared) - own:
        assert declared[name]["description"] == action()["inputs"][name]["description"]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH's first folder: `weightyard` of this checkout, and a pip that installs nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = shlex.join(python_module("weightyard"))
    for name, text in (
        ("weightyard", f'exec {command} "$@"'),
        ("pip", "exit 0"),
        ("python", f'exec {sys.executable} "$@"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def bash(script: str, folder: Path, programs: Path, **variables: str) -> str:
    """Run a script as a runner does; what it says."""
    environment = child_environment(folder, **variables)
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    algorithm = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(
        ["openssl", "genpkey", *algorithm, "-out", path], check=True, capture_output=True
    )
    public = ["openssl", "pkey", "-in", path, "-pubout", "-out", tmp_path / "key.pub"]
    subprocess.run(public, check=True)
    return path


def check_published(image: str, by_digest: str, folder: Path, programs: Path) -> None:
    """With its variant, signed, with an SBOM, and named by digest to later jobs."""
    found = json.loads(bash(f"weightyard inspect {image} --json", folder, programs))
    assert found["variants"] == ["bf16", "int8"]
    assert by_digest == f"{image.rpartition(':')[0]}@{found['digest']}"
    bash(f"weightyard verify {image} --key {folder / 'key.pub'}", folder, programs)
    assert "cyclonedx" in bash(f"weightyard discover {image} --json", folder, programs).lower()


@pytest.mark.servers
@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_a_job_publishes_a_signed_image(
    tmp_path: Path,
    programs: Path,
    key: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    system: str,
) -> None:
    synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=1_000_000)
    image = f"{registry.host}/{unique_name('ci/model')}:v1"
    inputs = {"source": "./checkpoint", "image": image, "variants": "int8", "weightyard": "w"}
    if system == "github":
        by_digest = run_action({**inputs, "signing-key": key.read_text()}, tmp_path, programs)
    else:
        job = yaml.safe_load(component(inputs)[1])["model-image"]
        script = "\n".join([*job["before_script"], *job["script"]])
        variables = {**job["variables"], "CI_PROJECT_DIR": str(tmp_path), "SIGNING_KEY": str(key)}
        bash(script, tmp_path, programs, **variables)
        by_digest = (tmp_path / "model-image.env").read_text().removeprefix("MODEL_IMAGE=").strip()
    check_published(image, by_digest, tmp_path, programs)


def run_action(inputs: Mapping[str, str], folder: Path, programs: Path) -> str:
    """Run the action's own steps; its output `image`."""
    found = action()
    values = {name: each.get("default", "") for name, each in found["inputs"].items()} | inputs
    output = folder / "output"
    for step in found["runs"]["steps"]:
        if "run" in step:
            variables = {
                name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text)
                for name, text in step.get("env", {}).items()
            }
            bash(
                step["run"], folder, programs, **variables,
                RUNNER_TEMP=str(folder), GITHUB_ACTION_PATH=str(ACTION.parent), GITHUB_OUTPUT=str(output),
            )  # fmt: skip
    told = dict(line.split("=", 1) for line in output.read_text().splitlines())
    assert told["image"].endswith(told["digest"])
    assert not (folder / "model-image.key").exists()
    return told["image"]

"""One plan, many places: the server's command line is the same in a pod, under compose, llm-d and `up`."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from tests.servers.process import child_environment
from tests.workspace import samples
from weightyard.cli import entries
from workspace.render.child_process import render_up
from workspace.render.cluster import render_kubernetes
from workspace.render.compose import ROOT, render_compose
from workspace.render.llmd import render_llmd
from workspace.render.release import pod_site, store_site
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace

Json = dict[str, Any]
ENVIRONMENT = SystemSettings()
RESOURCES = [
    {"gpu": "L4"},
    {"gpu": "H100", "gpus": 4},
    {"gpus": 0, "memory": "64Gi"},
    {"gpu": "T4"},
]
ARGS = [[], ["--max-num-seqs", "8"], ["--served-model-name=x"], ["--chat-template", "{{$HOME}}"]]


def pod_words(workspace: Workspace) -> list[str]:
    release = samples.release(workspace, site_of=pod_site(workspace))
    objects = render_kubernetes(workspace, release, ENVIRONMENT)
    template = next(each for each in objects if each["kind"] == "Deployment")["spec"]["template"]
    container = template["spec"]["containers"][0]
    return container["command"] + container["args"]


def compose_words(workspace: Workspace) -> list[str]:
    release = samples.release(workspace, site_of=store_site(workspace, ROOT))
    server = render_compose(workspace, release, ENVIRONMENT)["services"]["server"]
    return server["entrypoint"] + [word.replace("$$", "$") for word in server["command"]]


def llmd_words(workspace: Workspace) -> list[str]:
    values = render_llmd(workspace, samples.release(workspace))
    container = values["decode"]["containers"][0]
    return container["command"] + container["args"]


def up_words(workspace: Workspace) -> list[str]:
    site_of = store_site(workspace, PurePosixPath("/home/a/store"), host="127.0.0.1")
    return render_up(samples.release(workspace, site_of=site_of))["command"]


def placeless(words: list[str], workspace: Workspace) -> list[str]:
    """The words with what differs by place replaced: the model's directory, the adapters' and the address."""
    key = samples.release(workspace).key.hex
    places = {
        f"{ROOT}/models/{key}": "MODEL", f"/home/a/store/models/{key}": "MODEL", "/model": "MODEL",
        "0.0.0.0": "HOST", "127.0.0.1": "HOST",  # noqa: S104
    }  # fmt: skip
    return [places.get(word, word) for word in words]


@given(st.sampled_from(RESOURCES), st.sampled_from(ARGS), st.sampled_from(["auto", "int4"]))
def test_the_command_line_is_the_same_everywhere(
    resources: Json, args: list[str], variant: str
) -> None:
    workspace = samples.workspace(
        resources=resources,
        runtime={"args": args},
        model={"image": samples.IMAGE, "variant": variant},
    )
    places = (pod_words, compose_words, llmd_words, up_words)
    lines = {tuple(placeless(words(workspace), workspace)) for words in places}
    assert len(lines) == 1
    assert "MODEL" in lines.pop()


def test_each_place_names_its_own_adapter_directories() -> None:
    runtime = {"adapters": [{"name": "sql", "image": "registry.example/team/sql:v1"}]}
    workspace = samples.workspace(runtime=runtime)
    assert "sql=/adapters/sql" in pod_words(workspace)
    key = samples.resolved(workspace).adapters["sql"].key.hex
    assert f"sql={ROOT}/models/{key}" in compose_words(workspace)


def compose(workspace: Workspace) -> Json:
    release = samples.release(workspace, site_of=store_site(workspace, ROOT))
    return render_compose(workspace, release, ENVIRONMENT)


def test_compose_starts_the_server_once_every_image_is_cached() -> None:
    runtime = {"adapters": [{"name": "sql", "image": "registry.example/team/sql:v1"}]}
    services = compose(samples.workspace(runtime=runtime))["services"]
    assert services["server"]["depends_on"] == {
        "model": {"condition": "service_completed_successfully"},
        "adapter-sql": {"condition": "service_completed_successfully"},
    }
    assert services["model"]["depends_on"] == {"agent": {"condition": "service_healthy"}}
    assert services["server"]["volumes"] == [f"weightyard:{ROOT}:ro"]


def test_compose_runs_our_programs_with_options_that_they_have() -> None:
    services = compose(samples.workspace())["services"]
    for name in ("agent", "model"):
        assert services[name]["entrypoint"] == ["weightyard"]
        subcommand, *words = services[name]["command"]
        entry = entries()[subcommand]
        module, _, attribute = entry.path.partition(":")
        command = getattr(import_module(module), attribute)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_compose_reserves_the_gpus() -> None:
    server = compose(samples.workspace(resources={"gpu": "L4", "gpus": 2}))["services"]["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert "deploy" not in compose(samples.workspace(resources={"gpus": 0}))["services"]["server"]


def test_podman_compose_reads_the_file_and_keeps_every_word(tmp_path: Path) -> None:
    runtime = {
        "args": ["--chat-template", "{{$HOME}} ${X}"],
        "env": [{"name": "TOKEN", "secret": {"name": "s", "key": "k"}}],
    }
    document = compose(samples.workspace(runtime=runtime))
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "-f", str(file), "config"],
        capture_output=True, text=True, env=child_environment(tmp_path, TOKEN="t0ken"), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert "{{$HOME}} ${X}" in read["server"]["command"]
    assert read["server"]["environment"]["TOKEN"] == "t0ken"
    assert set(read) == {"agent", "model", "server"}


def test_up_refuses_engines_that_live_in_containers_only() -> None:
    workspace = samples.workspace(runtime={"engine": "tgi"})
    with pytest.raises(InvalidInput, match="can't start tgi"):
        render_up(samples.release(workspace))

"""Models on the Hub and in S3: which image stands for one, how it is built, and what is said where it can't be."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from modelimage.access import Access, open_reader
from modelimage.errors import InvalidInput, NotFound
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint
from tests.workspace import openapi, samples
from weightyard.cli import main
from workspace.images import resolve_workspace
from workspace.render.build_settings import BuildSettings
from workspace.render.builder_objects import build_job
from workspace.render.kubernetes import surrounding_objects
from workspace.render.names import build_policy
from workspace.render.routing import Routing, SystemSettings
from workspace.schema import Workspace
from workspace.sources import NotBuilt, build_arguments, image_of, variants

Json = dict[str, Any]
SCRATCH = "/tmp"  # noqa: S108 - the pod's
TO = {"to": "registry.example/team/llama"}


def of_hub(name: str = "org/llama@main", *, build: Any = TO, **model: Any) -> Workspace:
    given = {"hub": name, **model} | ({"build": build} if build else {})
    return samples.workspace(model=given)


def test_the_tag_is_made_of_what_is_built() -> None:
    image = image_of(of_hub())
    assert image.startswith("registry.example/team/llama:src-")
    assert image_of(of_hub()) == image
    others = [
        of_hub("org/llama@v2"), of_hub(variant="int4"), of_hub(build={**TO, "variants": ["int8"]}),
        samples.workspace(model={"hub": "org/llama@main", "build": TO}, rollout={"restartedAt": "now"}),
    ]  # fmt: skip
    assert len({image, *map(image_of, others)}) == 5
    # What is served isn't what is built: another secret or GPU needs no other image.
    assert image_of(of_hub(pullSecret="x")) == image
    assert image_of(of_hub(variant="bf16")) == image


@pytest.mark.parametrize("published", ["awq", "fp8", "gptq-int4", "bf16", "auto"])
def test_a_variant_that_the_source_has_is_not_made(published: str) -> None:
    assert variants(of_hub(variant=published, build=TO)) == ()


def test_the_variant_to_serve_is_built_too() -> None:
    workspace = of_hub(variant="int4", build={**TO, "variants": ["int8", "bf16"]})
    assert variants(workspace) == ("int8", "int4")
    assert build_arguments(workspace, "r/x:1") == (
        "build", "hf://org/llama@main", "--to", "r/x:1", "--variant", "int8", "--variant", "int4",
    )  # fmt: skip
    s3 = samples.workspace(model={"s3": "bucket/llama", "build": TO})
    assert build_arguments(s3, "r/x:1")[1] == "s3://bucket/llama"


def test_without_a_place_to_build_to_the_hint_names_both_ways() -> None:
    with pytest.raises(InvalidInput, match="hf://org/llama@main") as caught:
        image_of(of_hub(build=None))
    assert "spec.model.build.to" in str(caught.value.hint)
    assert "weightyard build hf://org/llama@main --to" in str(caught.value.hint)


@pytest.mark.parametrize(
    "to", ["registry.example/a:v1", "oci:/dir", f"r.example/a@sha256:{'a' * 64}"]
)
def test_the_place_is_a_repository_without_a_tag(to: str) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.model\.build\.to"):
        image_of(of_hub(build={"to": to}))


def test_a_port_is_no_tag() -> None:
    assert image_of(of_hub(build={"to": "127.0.0.1:5000/a"})).startswith("127.0.0.1:5000/a:src-")


def container(workspace: Workspace) -> Json:
    spec = build_job(workspace, SystemSettings())["spec"]["template"]["spec"]
    found: Json = spec["containers"][0]
    return found


def test_the_job_is_one_that_every_server_takes_and_the_restricted_standard_allows() -> None:
    job = build_job(of_hub(pullSecret="pull", build={**TO, "secret": "hub"}), SystemSettings())
    assert [p for v in (openapi.OLDEST, openapi.NEWEST) for p in openapi.problems(job, v)] == []
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "hub"}}]
    mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_builds_are_limited_as_the_operator_says() -> None:
    builds = BuildSettings(limits={"memory": "32768Mi"})
    job = build_job(of_hub(), SystemSettings(builds=builds))
    (built,) = job["spec"]["template"]["spec"]["containers"]
    assert built["resources"] == {
        "requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "32Gi"},
    }  # fmt: skip
    assert job["spec"]["activeDeadlineSeconds"] > 0


def test_nobody_reaches_a_build_and_it_does_not_reach_what_is_blocked() -> None:
    builds = BuildSettings(blocked=("169.254.169.254/32", "fd00:ec2::254/128"))
    workspace, environment = of_hub(build=TO), SystemSettings(builds=builds)
    job = build_job(workspace, environment, uid="u")
    policy = next(
        each
        for each in surrounding_objects(workspace, environment, Routing(uid="u"))
        if each["metadata"]["name"] == build_policy(workspace.name)
    )
    versions = (openapi.OLDEST, openapi.NEWEST)
    assert [p for v in versions for p in openapi.problems(policy, v)] == []
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    assert selected <= job["spec"]["template"]["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]
    (egress,) = policy["spec"]["egress"]
    assert egress["to"][:2] == [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::254/128"]}},
    ]


def test_another_build_is_another_job() -> None:
    jobs = [of_hub(), of_hub("org/b"), of_hub(pullSecret="x"), of_hub(build={**TO, "secret": "s"})]
    assert len({build_job(each, SystemSettings())["metadata"]["name"] for each in jobs}) == 4
    # The pods' label job-name holds it, so it is at most 63 characters long.
    long = samples.workspace("w" * 52, model={"hub": "a/b", "build": TO})
    assert len(build_job(long, SystemSettings())["metadata"]["name"]) <= 63


@pytest.mark.servers
def test_what_the_job_runs_makes_what_the_controller_then_resolves(
    hub: Hub, registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = synthetic_checkpoint(tmp_path / "model", total_bytes=2_000_000)
    hub.add("org/tiny-of-a-workspace", checkpoint)
    workspace = of_hub(
        "org/tiny-of-a-workspace", build={"to": f"{registry.host}/team/tiny-of-a-workspace"}
    )

    def resolve() -> dict[str, object]:
        found = resolve_workspace(workspace, lambda reference: open_reader(reference, Access()))
        return dict(found.model.records)

    with pytest.raises(NotBuilt) as caught:
        resolve()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [
        w.replace(f"{SCRATCH}/work", str(tmp_path / "work")) for w in container(workspace)["args"]
    ]
    assert shlex.join(["weightyard", *words]).startswith(
        str(caught.value.hint).removeprefix("Run: ")
    )
    assert main(["-q", *words]) == 0
    assert set(resolve()) == {"bf16"}


def test_an_image_that_isnt_there_stays_not_found() -> None:
    workspace = samples.workspace(model={"image": "oci:/nowhere/at/all:v1"})
    with pytest.raises(NotFound) as caught:
        resolve_workspace(workspace, lambda reference: open_reader(reference, Access()))
    assert not isinstance(caught.value, NotBuilt)


@pytest.mark.servers
def test_render_says_the_command_that_builds_it(
    registry: DockerRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = of_hub(build={"to": f"{registry.host}/team/never-built"})
    file = tmp_path / "w.json"
    file.write_text(json.dumps(workspace.to_document()))
    assert main(["render", "-f", str(file), "--to", "kubernetes"]) == 3
    assert (
        f"weightyard build hf://org/llama@main --to {image_of(workspace)}"
        in capsys.readouterr().err
    )

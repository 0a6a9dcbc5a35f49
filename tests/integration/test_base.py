"""An image on a base runs: containerd and podman start a shell from it, which finds the model under /models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.base_image import open_base
from builder.build import BuildOptions, BuildResult
from builder.verifier import image_contents, verify_image
from modelimage import canonical
from modelimage.access import Access, open_reader
from modelimage.errors import NotFound
from modelimage.layout import Layout
from modelimage.reference import LayoutReference, parse_registry
from modelimage.resolve import resolve_model
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.servers.base_image import base_layout
from tests.servers.containerd import Containerd
from tests.servers.podman import Podman
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers

SCRIPT = "IFS= read -r first < /models/model-name.txt; echo $BASE:$first"


@dataclass(frozen=True)
class Based:
    reference: str
    base: Path
    result: BuildResult


@pytest.fixture(scope="module")
def based(
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Based:
    scratch = tmp_path_factory.mktemp("based")
    base = base_layout(scratch / "base")
    source = single(scratch / "source")
    (source / "model-name.txt").write_text("tiny\n")
    options = BuildOptions(
        include=("model-name.txt",), base=open_base(LayoutReference(base, "v1"), Access())
    )
    reference = f"{registry.host}/{unique_name('team/based')}:v1"
    return Based(reference, base, build_here(source, reference, scratch, options))


def manifests(based: Based) -> list[dict[str, Any]]:
    """Those of the index, in order."""
    reader = open_reader(parse_registry(based.reference), Access())
    index = json.loads(reader.manifest(reader.resolve("v1")))
    return [json.loads(reader.manifest(reader.resolve(m["digest"]))) for m in index["manifests"]]


def test_each_platform_has_its_own_base_below_and_the_modelpack_manifest_has_none(
    based: Based,
) -> None:
    amd64, arm64, modelpack = manifests(based)
    roles = [
        [layer["annotations"]["dev.weightyard.role"] for layer in manifest["layers"]]
        for manifest in (amd64, arm64, modelpack)
    ]
    assert roles[0] == roles[1]
    assert roles[0][:3] == ["base", "record", "link"]
    # ModelPack lists a layer of several files once for each.
    assert list(dict.fromkeys(roles[2])) == [
        role for role in roles[0] if role not in ("base", "link")
    ]
    assert amd64["layers"][0]["digest"] != arm64["layers"][0]["digest"]
    assert [layer["digest"] for layer in amd64["layers"][1:]] == [
        layer["digest"] for layer in arm64["layers"][1:]
    ]
    base = Layout(based.base)
    listed = json.loads(base.manifest(base.resolve("v1")))["manifests"]
    named = [m["annotations"]["org.opencontainers.image.base.digest"] for m in (amd64, arm64)]
    assert named == [each["digest"] for each in listed]


def test_the_model_is_the_same_as_without_a_base(based: Based, tmp_path: Path) -> None:
    reader = open_reader(parse_registry(based.reference), Access())
    plain = build_here(
        based.base.parent / "source",
        f"oci:{tmp_path}/plain:v1",
        tmp_path,
        BuildOptions(include=("model-name.txt",)),
    )
    assert resolve_model(reader, "v1").record.key == plain.records[0].key
    verify_image(reader, image_contents(reader, "v1"), lambda _: None).raise_problems()


def test_podman_runs_a_shell_from_it(based: Based, podman: Podman) -> None:
    podman.pull(based.reference)
    assert podman.run_once(based.reference, SCRIPT).strip() == "yes:tiny"


def test_containerd_runs_a_shell_from_it(based: Based, containerd: Containerd) -> None:
    containerd.pull(based.reference)
    assert containerd.run_once(based.reference, "/bin/sh", "-c", SCRIPT).strip() == "yes:tiny"


def test_a_base_of_one_platform_gives_images_of_that_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    base = base_layout(tmp_path / "base", ("arm64", "riscv64"))
    source, out = single(tmp_path / "source"), f"oci:{tmp_path}/out:v1"
    built = weightyard_here(capsys, "build", source, "--to", out, "--base", f"oci:{base}:v1")
    assert built.code == 0, built.err
    layout = Layout(tmp_path / "out")
    index = canonical.parse(layout.manifest(layout.resolve("v1")), what="index")
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["arm64", "unknown"]
    again = weightyard_here(
        capsys, "--json", "build", source, "--to", out, "--base", f"oci:{base}:v1"
    )
    assert again.json["digest"] == str(layout.resolve("v1").digest)


def test_what_is_no_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    base = base_layout(tmp_path / "base", ("riscv64",))
    with pytest.raises(NotFound, match="has no image for linux/amd64 or linux/arm64"):
        open_base(LayoutReference(base, "v1"), Access())
    source = single(tmp_path / "source")
    out = f"oci:{tmp_path}/out:v1"
    assert weightyard_here(capsys, "build", source, "--to", out).code == 0
    build = ("build", source, "--to", f"oci:{tmp_path}/other:v1", "--base")
    artifact = weightyard_here(capsys, *build, f"oci:{tmp_path}/out:v1-modelpack")
    assert artifact.code == 15
    assert "a container image" in artifact.err
    assert weightyard_here(capsys, *build, "docker:busybox").code == 2
    absent = weightyard_here(capsys, *build, f"oci:{tmp_path}/absent:v1")
    assert absent.code == 3

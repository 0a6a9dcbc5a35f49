"""What planners learn of images that others made is what a record of ours would have said of the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.build import BuildOptions
from modelimage.access import Access, open_reader
from modelimage.descriptor import LINUX_AMD64
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.foreign import AS_PUBLISHED, Packing, ServedModel, served_from_image
from modelimage.mediatypes import ANNOTATION_FILEPATH, MODELPACK_CONFIG, MODELPACK_MANIFEST
from modelimage.reference import parse_image
from modelimage.resolve import resolve_model
from tests.builder.building import build_here
from tests.builder.checkpoints import sharded
from tests.modelimage.foreign.images import Maker, files_tar
from workspace.images import resolve_workspace
from workspace.schema import Workspace


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    checkpoint = sharded(tmp_path / "checkpoint")
    return {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}


def served(maker: Maker, tag: str = "latest") -> ServedModel:
    return served_from_image(maker.layout, maker.layout.resolve(tag), LINUX_AMD64)


def facts_of_ours(tmp_path: Path) -> object:
    to = f"oci:{tmp_path}/ours:v1"
    build_here(tmp_path / "checkpoint", to, tmp_path, BuildOptions())
    return resolve_model(open_reader(parse_image(to), Access()), "v1").record.facts


def test_a_modelcar_and_a_modelpack_artifact_say_what_our_record_says(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    ours = facts_of_ours(tmp_path)
    car = Maker(tmp_path / "car")
    manifest = car.image(files_tar({f"models/{path}": data for path, data in files.items()}))
    raw = Maker(tmp_path / "raw")
    raw.manifest(
        raw.json(MODELPACK_CONFIG, {"modelfs": {"type": "layers", "diffIds": []}}),
        [
            raw.blob("application/vnd.cncf.model.weight.v1.raw", data, {ANNOTATION_FILEPATH: path})
            for path, data in files.items()
        ],
        artifactType=MODELPACK_MANIFEST,
    )
    assert served(car).facts == ours
    assert served(raw).facts == ours
    assert served(car).key == manifest.digest
    assert {file.path for file in served(raw).files} == set(files)


def test_gguf_is_served_by_its_size(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "image")
    maker.image(files_tar({"models/model.gguf": b"GGUF" + bytes(996)}))
    facts = served(maker).facts
    assert (facts.format, facts.weight_bytes, facts.gpu_memory_bytes) == ("gguf", 1000, 1000)


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        ({"models/readme.txt": b"no weights"}, "neither safetensors nor GGUF"),
        ({"models/model.safetensors": b"\xff" * 40}, r"model\.safetensors"),
        ({"models/model.safetensors": b"1"}, r"model\.safetensors"),
    ],
)
def test_what_can_not_be_served_is_said_so(
    tmp_path: Path, contents: dict[str, bytes], problem: str
) -> None:
    maker = Maker(tmp_path / "image")
    maker.image(files_tar(contents))
    with pytest.raises(WeightyardError, match=problem):
        served(maker)


def test_compressed_layers_tell_nothing_before_they_are_pulled(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    maker = Maker(tmp_path / "image")
    maker.image(files_tar(files), packing=Packing.TAR_GZIP)
    with pytest.raises(InvalidImage, match="compressed"):
        served(maker)


def test_a_workspace_is_planned_with_a_foreign_image(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    maker = Maker(tmp_path / "image")
    manifest = maker.image(files_tar(files))
    document = {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "foreign"},
        "spec": {"model": {"image": f"oci:{tmp_path}/image"}, "resources": {"gpus": 0}},
    }
    workspace = Workspace.model_validate_json(json.dumps(document))
    model = resolve_workspace(workspace, lambda each: open_reader(each, Access())).model
    assert set(model.records) == {AS_PUBLISHED}
    assert model.image.endswith(str(manifest.digest))
    assert model.records[AS_PUBLISHED].key == manifest.digest

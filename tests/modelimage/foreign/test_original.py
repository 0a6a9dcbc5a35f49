"""The record in images that another tool made from ours."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from builder.build import BuildResult
from modelimage.descriptor import LINUX_AMD64, Descriptor
from modelimage.digest import Digest
from modelimage.errors import UnknownVariant
from modelimage.foreign import (
    Original,
    Packing,
    compare_with_record,
    describe_foreign,
    resolve_ours,
    served_from_image,
)
from modelimage.layout import Layout
from modelimage.mediatypes import OCI_CONFIG
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.modelimage.foreign.describing import check_pull, described
from tests.modelimage.foreign.images import OCI_TAR, Maker, files_tar, pull

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 1500}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, BuildResult]:
    scratch = tmp_path_factory.mktemp("original")
    result = build_here(single(scratch / "model"), f"oci:{scratch / 'out'}:v1", scratch)
    return Layout(scratch / "out"), result


def remade(
    built: tuple[Layout, BuildResult], directory: Path, packing: Packing, *more: bytes
) -> Maker:
    """The image for amd64 as another tool would write it: no annotations, layers packed alike, more on top."""
    layout, _ = built
    image = json.loads(layout.manifest(layout.resolve("v1")))["manifests"][0]
    listed = json.loads(layout.manifest(layout.resolve(image["digest"])))["layers"]
    blobs = layout.path / "blobs/sha256"
    tars = [(blobs / layer["digest"].removeprefix("sha256:")).read_bytes() for layer in listed]
    maker = Maker(directory / "remade")
    maker.image(*tars, *more, packing=packing)
    return maker


def test_layers_as_published_are_ours_without_any_annotation(
    built: tuple[Layout, BuildResult], tmp_path: Path
) -> None:
    maker, (record,) = remade(built, tmp_path, Packing.TAR), built[1].records
    root = maker.layout.resolve("latest")
    found = resolve_ours(maker.layout, root, record.variant)
    assert found is not None
    assert found.record == record
    with pytest.raises(UnknownVariant, match="it has: bf16"):
        resolve_ours(maker.layout, root, "int4")


@pytest.mark.parametrize("packing", [Packing.TAR_GZIP, Packing.TAR_ZSTD])
def test_a_compressed_image_is_planned_by_the_record_that_it_carries(
    built: tuple[Layout, BuildResult], tmp_path: Path, packing: Packing
) -> None:
    maker, (record,) = remade(built, tmp_path, packing), built[1].records
    root = maker.layout.resolve("latest")
    assert resolve_ours(maker.layout, root) is None
    assert describe_foreign(maker.layout, root).record == record
    served = served_from_image(maker.layout, root, LINUX_AMD64)
    assert (served.facts, served.variant) == (record.facts, record.variant)
    assert served.key == root.digest != record.key


def test_a_layer_on_top_makes_it_another_image(
    built: tuple[Layout, BuildResult], tmp_path: Path
) -> None:
    maker = remade(built, tmp_path, Packing.TAR, files_tar({"added.txt": b"1"}))
    root = maker.layout.resolve("latest")
    assert resolve_ours(maker.layout, root) is None
    model = describe_foreign(maker.layout, root)
    assert model.record == built[1].records[0]
    assert "added.txt" in {file.path for file in model.files}
    assert served_from_image(maker.layout, root, LINUX_AMD64).variant == "as-published"


def test_what_lies_below_the_record_is_no_part_of_the_model(
    built: tuple[Layout, BuildResult], tmp_path: Path
) -> None:
    maker = remade(built, tmp_path, Packing.TAR_GZIP)
    listed = json.loads(maker.layout.manifest(maker.layout.resolve("latest")))
    tars = [files_tar({"etc/passwd": b"root"})]
    for layer in described(maker).layers:
        blob = maker.layout.path / "blobs/sha256" / layer.digest.hex
        tars.append(gzip.decompress(blob.read_bytes()))
    based = Maker(tmp_path / "based")
    based.image(*tars, packing=Packing.TAR_GZIP)
    model = described(based)
    assert len(model.layers) == len(listed["layers"])
    assert "a layer of the base image" in model.left_out.values()


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_GZIP])
@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("shift", [1, 2, 3, -1])
def test_layers_in_another_order_are_all_read(
    built: tuple[Layout, BuildResult], tmp_path: Path, packing: Packing, annotated: bool, shift: int
) -> None:
    maker, (record,) = remade(built, tmp_path, packing), built[1].records
    document = json.loads(maker.layout.manifest(maker.layout.resolve("latest")))
    layers = document["layers"]
    if annotated:
        layers[0]["annotations"] = {"dev.weightyard.role": "record"}
    config = json.loads(
        maker.layout.blob_path(Digest.parse(document["config"]["digest"])).read_bytes()
    )
    ids = config["rootfs"]["diff_ids"]
    # Turned, or in reverse.
    turned = [each[::-1] if shift < 0 else each[shift:] + each[:shift] for each in (layers, ids)]
    config["rootfs"]["diff_ids"] = turned[1]
    maker.manifest(
        maker.json(OCI_CONFIG, config), [Descriptor.from_json(each) for each in turned[0]]
    )
    model = described(maker)
    expected = {file.path: file.digest for file in record.files}
    assert {
        path: Digest.of(data) for path, data in pull(maker.layout, model)[1].items()
    } == expected


@pytest.mark.parametrize("annotated", [True, False])
def test_what_estargz_adds_to_each_layer_is_no_part_of_the_model(
    built: tuple[Layout, BuildResult],
    tmp_path: Path,
    annotated: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As containerd's stargz-snapshotter converts an image: a member for each file, marks, and a table of contents."""
    maker, (record,) = remade(built, tmp_path, Packing.TAR), built[1].records
    document = json.loads(maker.layout.manifest(maker.layout.resolve("latest")))
    layers, ids = [], []
    marks = {".no.prefetch.landmark": b"\xf0", "stargz.index.json": b'{"version":1}'}
    for number, listed in enumerate(document["layers"]):
        plain = maker.layout.blob_path(Digest.parse(listed["digest"])).read_bytes()
        added = files_tar(marks)
        # The end-of-archive blocks are those of the table of contents.
        tar = plain[:-1024] + added
        annotations = {"dev.weightyard.role": "record"} if annotated and not number else None
        packed = gzip.compress(plain[:-1024]) + gzip.compress(added)
        layers.append(maker.blob(f"{OCI_TAR}+gzip", packed, annotations))
        ids.append(str(Digest.of(tar)))
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids}}
    maker.manifest(maker.json(OCI_CONFIG, config), layers)
    root = maker.layout.resolve("latest")
    assert (describe_foreign(maker.layout, root).record == record) is annotated
    image = f"oci:{maker.layout.path}:latest"
    for command in (("verify", image), ("pull", image, "--root", tmp_path / "cache")):
        outcome = weightyard_here(capsys, "--json", *command)
        assert outcome.code == 0, outcome.err
    assert outcome.json["variant"] == record.variant
    names = {path.name for path in Path(outcome.json["path"]).iterdir()}
    assert not names & set(marks)


@pytest.mark.parametrize("mark", ["record", "flattened"])
def test_a_false_record_makes_a_foreign_image(tmp_path: Path, mark: str) -> None:
    maker = Maker(tmp_path)
    noise = files_tar({"weightyard.json": b'{"schemaVersion":1}', **FILES})
    annotations = {"dev.weightyard.role": "record"} if mark == "record" else None
    layer = maker.blob(OCI_TAR, noise, annotations)
    config = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": [str(layer.digest)]}}
    maker.manifest(maker.json(OCI_CONFIG, config), [layer])
    root = maker.layout.resolve("latest")
    assert resolve_ours(maker.layout, root) is None
    model = describe_foreign(maker.layout, root)
    assert model.record is None
    assert model.left_out == {"weightyard.json": "the name of the cache's own record"}
    check_pull(maker, model, FILES)


def test_every_difference_from_the_record_is_named(built: tuple[Layout, BuildResult]) -> None:
    record = built[1].records[0]
    same = compare_with_record(record, record.files)
    assert same == Original(record.key, record.variant)
    assert "every file is as its record says" in str(same)
    missing = compare_with_record(record, record.files[1:])
    assert missing.differs == (record.files[0].path,)
    assert record.files[0].path in str(missing)
    assert Original.from_json(missing.to_json()) == missing


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_GZIP, Packing.TAR_ZSTD])
@pytest.mark.parametrize("folder", ["", "models/"])
@pytest.mark.parametrize("decoys", [0, 3])
def test_verify_and_pull_find_the_record_wherever_the_files_lie(
    built: tuple[Layout, BuildResult],
    tmp_path: Path,
    packing: Packing,
    folder: str,
    decoys: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout, result = built
    (record,) = result.records
    weightyard_here(capsys, "pull", f"oci:{layout.path}:v1", "--root", tmp_path / "first")
    (directory,) = (tmp_path / "first/models").iterdir()
    files = {
        f"{folder}{path.relative_to(directory).as_posix()}": path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    # As `COPY --from` of a Dockerfile leaves them, beside files of the same name that are none of the model's.
    others = {f"usr/{number}/weightyard.json": b"{}" for number in range(decoys)}
    maker = Maker(tmp_path / "made")
    maker.image(files_tar({**others, **files} if folder else files), packing=packing)
    image = f"oci:{tmp_path / 'made'}:latest"
    verified = weightyard_here(capsys, "--json", "verify", image)
    pulled = weightyard_here(capsys, "--json", "pull", image, "--root", tmp_path / "cache")
    assert verified.code == pulled.code == 0, verified.err + pulled.err
    assert verified.json["original"] == {"key": str(record.key), "variant": "bf16", "differs": []}
    assert pulled.json["variant"] == "bf16"

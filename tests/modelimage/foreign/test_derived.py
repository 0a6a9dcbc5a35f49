"""The record that a node writes of a foreign image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, InvalidInput
from modelimage.foreign import (
    DerivedRecord,
    ForeignModel,
    Packing,
    derive,
    describe_foreign,
    parse_record,
    resolve_ours,
)
from modelimage.foreign.model import role_of
from modelimage.hasher import FileDigests, hash_file
from modelimage.recipe import Literal
from modelimage.record import ModelFacts, Record, Role
from tests.modelimage.foreign.images import Maker, files_tar, pull

FILES = {"a.gguf": b"weights", "docs/LICENSE": b"", "models/b.json": b"{}"}


def model_in(path: Path) -> tuple[Maker, ForeignModel]:
    maker = Maker(path)
    title = "org.opencontainers.image.title"
    layers = [maker.blob("application/octet-stream", FILES[name], {title: name}) for name in FILES]
    maker.manifest(maker.blob("application/vnd.oci.empty.v1+json", b"{}"), layers)
    return maker, describe_foreign(maker.layout, maker.layout.resolve("latest"))


def digests(path: Path, files: dict[str, bytes]) -> dict[str, FileDigests]:
    found = {}
    for name, data in files.items():
        place = path / name.replace("/", "-")
        place.write_bytes(data)
        found[name] = hash_file(place)
    return found


def record_in(path: Path) -> DerivedRecord:
    maker, model = model_in(path / "image")
    listed, files = pull(maker.layout, model)
    return derive(listed, digests(path, files))


def test_it_says_what_was_pulled(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    _, model = model_in(tmp_path / "image")
    assert record.key == model.manifest.digest
    assert record.size == sum(map(len, FILES.values()))
    assert {file.path: file.digest for file in record.files} == {
        path: Digest.of(data) for path, data in FILES.items()
    }
    assert [len(file.chunks) for file in record.files] == [1, 0, 1]
    assert {file.path: file.role for file in record.files} == {
        "a.gguf": Role.WEIGHT,
        "docs/LICENSE": Role.DOC,
        "models/b.json": Role.CONFIG,
    }


def test_it_reads_back(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    assert DerivedRecord.parse(record.to_bytes()) == record


def test_it_makes_an_uncompressed_layer_again(tmp_path: Path) -> None:
    files = {"a": b"1" * 600, "b": b"", "c/d": b"2"}
    maker = Maker(tmp_path / "image")
    maker.image(files_tar(files))
    model = describe_foreign(maker.layout, maker.layout.resolve("latest"))
    record = derive(model, digests(tmp_path, pull(maker.layout, model)[1]))
    assert DerivedRecord.parse(record.to_bytes()) == record
    recipe = record.recipe(model.layers[0].digest)
    assert recipe is not None
    content = {file.digest: files[file.path] for file in record.files}
    blob = b"".join(
        part.data if isinstance(part, Literal) else content[part.file.digest]
        for part in recipe.segments
    )
    assert Digest.of(blob) == model.layers[0].digest


def test_it_makes_raw_layers_again(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    for layer in record.layers:
        recipe = record.recipe(layer.digest)
        assert recipe is not None
        assert recipe.size == layer.size
    assert record.recipe(Digest.of(b"no such layer")) is None


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_GZIP])
def test_what_it_cannot_make_again_it_does_not_claim(tmp_path: Path, packing: Packing) -> None:
    """A compressed layer, and one whose files aren't all in the model."""
    maker = Maker(tmp_path / "image")
    maker.image(files_tar({"models/a": b"1", "usr/b": b"2"}), packing=packing)
    model = describe_foreign(maker.layout, maker.layout.resolve("latest"))
    listed, files = pull(maker.layout, model)
    record = derive(listed, digests(tmp_path, files))
    assert record.recipe(record.layers[0].digest) is None
    assert [file.path for file in record.layer_files(record.layers[0].digest)] == ["a"]


def test_records_of_both_kinds_are_read(tmp_path: Path) -> None:
    derived = record_in(tmp_path)
    assert parse_record(derived.to_bytes()) == derived
    facts = ModelFacts()
    ours = Record("bf16", "local", "", "", facts, files=(), layers=())
    assert parse_record(ours.to_bytes()) == ours


def test_a_raw_layer_has_its_files_digest(tmp_path: Path) -> None:
    _, model = model_in(tmp_path / "image")
    wrong = digests(tmp_path, {**FILES, "a.gguf": b"other"})
    with pytest.raises(DigestMismatch, match=r"a\.gguf"):
        derive(model, wrong)


def test_every_file_needs_digests(tmp_path: Path) -> None:
    _, model = model_in(tmp_path / "image")
    with pytest.raises(InvalidImage, match="no digests"):
        derive(model, {})


DAMAGES: dict[str, Any] = {
    "another schema": {"schema": "weightyard.dev/derived/v0"},
    "no schema": {"schema": None},
    "another chunk size": {"chunkSize": 1},
    "no manifest": {"manifest": ""},
    "an unknown kind": {"kind": "squashfs"},
    "files that are none": {"files": [1]},
    "no files": {"files": None},
    "layers that are none": {"layers": ["x"]},
    "layers without parts": {"layers": [{}]},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_refused(tmp_path: Path, name: str) -> None:
    document = json.loads(record_in(tmp_path).to_bytes())
    with pytest.raises(InvalidImage):
        DerivedRecord.parse(canonical.to_bytes({**document, **DAMAGES[name]}))


@pytest.mark.parametrize(
    "damage",
    [
        {"path": "../a"}, {"path": "zzz"}, {"path": "docs"}, {"size": -1}, {"size": True}, {"sha256": "x"},
        {"role": "x"}, {"layer": "x"}, {"blake3": []}, {"blake3": ["x"]}, {"blake3": None},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    document = json.loads(record_in(tmp_path).to_bytes())
    document["files"][0].update(damage)
    with pytest.raises(InvalidImage):
        DerivedRecord.parse(canonical.to_bytes(document))


@pytest.mark.parametrize(
    "parts", [[{"file": "../x"}], [{"file": "unknown"}], [{"literal": "?"}], [{}], [], [{"literal": "AAAA"}], 1]
)  # fmt: skip
def test_damaged_parts_are_refused(tmp_path: Path, parts: Any) -> None:
    document = json.loads(record_in(tmp_path).to_bytes())
    document["layers"][0]["parts"] = parts
    with pytest.raises(InvalidImage):
        DerivedRecord.parse(canonical.to_bytes(document))


@given(data=st.binary(max_size=200))
def test_noise_is_no_record(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        DerivedRecord.parse(data)


def test_a_layer_is_found_by_its_digest(tmp_path: Path) -> None:
    _, model = model_in(tmp_path)
    assert model.layer(model.layers[0].digest) is model.layers[0]
    with pytest.raises(InvalidInput):
        model.layer(Digest.of(b"no such layer"))


def test_an_image_is_ours_by_its_record_not_by_an_annotation(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    foreign = maker.image(files_tar({"a": b"1"}), tag="foreign")
    key = {"dev.weightyard.model-key": "sha256:" + "0" * 64}
    claims = maker.image(files_tar({"a": b"1"}), tag="ours", annotations=key)
    for root in (foreign, claims, maker.index([foreign], tag="index")):
        assert resolve_ours(maker.layout, root) is None


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("model-00001-of-00002.safetensors", Role.WEIGHT), ("sub/x.Q4_K_M.GGUF", Role.WEIGHT),
        ("tokenizer.json", Role.TOKENIZER), ("tokenizer.model", Role.TOKENIZER), ("config.json", Role.CONFIG),
        ("model.safetensors.index.json", Role.CONFIG), ("modeling_x.py", Role.CODE), ("README.md", Role.DOC),
        ("LICENSE", Role.DOC),
    ],
)  # fmt: skip
def test_roles_by_name(path: str, role: Role) -> None:
    assert role_of(path) is role

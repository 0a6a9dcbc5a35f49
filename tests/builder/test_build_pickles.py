"""Builds from pickled checkpoints. They need torch, which makes the checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builder.build import BuildOptions
from modelimage.errors import InvalidCheckpoint, UnsafePickle
from modelimage.record import Role
from tests.builder.building import build_here
from tests.builder.checkpoints import single, write
from tests.builder.test_build import Interrupted, assert_intact, record_of


def test_a_pickle_is_refused_until_conversion_is_asked_for(tmp_path: Path) -> None:
    source = pickled(tmp_path / "source")
    with pytest.raises(UnsafePickle):
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    assert not (tmp_path / "out").exists()
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, BuildOptions(convert_pickle=True))
    record = record_of(tmp_path / "out")
    assert {file.path for file in record.files if file.role is Role.WEIGHT} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert "model.safetensors.index.json" in {file.path for file in record.files}
    assert record.extra == {"convertedFrom": "pickle"}
    assert_intact(tmp_path / "out")
    assert not any((tmp_path / "work").iterdir())


def test_a_broken_off_conversion_goes_on_with_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder import collect  # noqa: PLC0415

    source = pickled(tmp_path / "source")
    real, done = collect.convert, []

    def convert(*arguments: object, **named: object) -> None:
        if len(done) == 1:
            raise Interrupted
        real(*arguments, **named)  # type: ignore[arg-type]
        done.append(named["name"])

    monkeypatch.setattr(collect, "convert", convert)
    options = BuildOptions(convert_pickle=True)
    with pytest.raises(Interrupted):
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    converted: list[object] = []
    monkeypatch.setattr(
        collect, "convert", lambda *a, **named: (converted.append(named["name"]), real(*a, **named))
    )
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    assert converted == ["pytorch_model-00002-of-00002.bin"]
    assert_intact(tmp_path / "out")


def test_pickles_with_tensors_of_one_name_are_refused_as_the_source_names_them(
    tmp_path: Path,
) -> None:
    source = single(tmp_path / "source")
    for name in ("a.pt", "b.pt"):
        torch.save({"weight": torch.ones(2)}, source / name)
    options = BuildOptions(convert_pickle=True)
    with pytest.raises(InvalidCheckpoint, match=r"a\.pt and b\.pt both hold") as caught:
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    excluded = str(caught.value.hint).split()[-1]
    options = BuildOptions(convert_pickle=True, exclude=(excluded,))
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)


def test_each_folder_of_converted_shards_gets_its_index(tmp_path: Path) -> None:
    source = write(single(tmp_path / "source"), {"model_index.json": b"{}"})
    (source / "unet").mkdir()
    for n in (1, 2):
        name = f"diffusion_pytorch_model-0000{n}-of-00002.bin"
        torch.save({f"t{n}": torch.ones(4, n)}, source / "unet" / name)
    options = BuildOptions(convert_pickle=True)
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    paths = {file.path for file in record_of(tmp_path / "out").files}
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in paths
    assert "model.safetensors.index.json" not in paths
    assert_intact(tmp_path / "out")


def pickled(directory: Path) -> Path:
    single(directory)
    (directory / "model.safetensors").unlink()
    for n in (1, 2):
        torch.save({f"t{n}": torch.ones(4, n)}, directory / f"pytorch_model-0000{n}-of-00002.bin")
    write(directory, {"pytorch_model.bin.index.json": b"{}"})
    return directory

"""Splitting large weight files: no byte of a tensor changes, and no layer is above the limit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from builder.build import BuildOptions
from builder.collect import CollectedCheckpoint, collect
from builder.layer_plan import MAX_WEIGHT_LAYERS, PlannedFile, plan_layers
from builder.reshard import LAYER_OVERHEAD, bounded_sizes, plan_parts, reshard
from builder.sources.local import LocalSource
from builder.survey import survey
from modelimage.checkpoint_files import INDEX
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidInput
from modelimage.layout import Layout
from modelimage.record import Role
from modelimage.resolve import resolve_model
from modelimage.safetensors import Header, TensorInfo
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single, weights, write
from tests.builder.reports import Remembering


def checkpoint_of(source: Path, work: Path) -> CollectedCheckpoint:
    return collect(survey(LocalSource(source)), work, Remembering())


def tensors_of(locations: dict[str, Path]) -> dict[str, tuple[str, list[int], bytes]]:
    """All tensors as the reference reader sees them."""
    found = {}
    for path in locations.values():
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                piece = file.get_slice(name)
                array = file.get_tensor(name)
                assert name not in found
                found[name] = (piece.get_dtype(), piece.get_shape(), array.tobytes())
    return found


TENSORS = {f"layer.{number}.weight": (40, 64) for number in range(9)}  # 10,240 bytes each in F32


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = single(tmp_path / "source")
    return write(directory, {"model.safetensors": weights(TENSORS, "F32")})


def weight_files(checkpoint: CollectedCheckpoint) -> dict[str, Path]:
    return {
        file.path: checkpoint.locations[file.path]
        for file in checkpoint.files
        if file.role is Role.WEIGHT
    }


def test_a_single_file_becomes_parts_with_an_index(source: Path, tmp_path: Path) -> None:
    before = checkpoint_of(source, tmp_path / "work")
    after = reshard(before, 32_000, "split", Remembering())
    parts = weight_files(after)
    assert len(parts) == 5
    assert "model.safetensors" not in parts
    assert tensors_of(parts) == tensors_of(weight_files(before))
    index = json.loads(after.locations[INDEX].read_bytes())
    assert {name: index["weight_map"][name] for name in TENSORS} == index["weight_map"]
    assert set(index["weight_map"].values()) == parts.keys()
    assert index["metadata"]["total_size"] == 9 * 10_240
    assert all(layer.size <= 32_000 for layer in plan_layers(after.files))
    assert after.facts == before.facts


def test_only_files_above_the_limit_are_split(source: Path, tmp_path: Path) -> None:
    names = list(TENSORS)
    shards = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    (source / "model.safetensors").unlink()
    for shard, held in shards.items():
        write(source, {shard: weights({name: TENSORS[name] for name in held}, "F32")})
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 92_160, "kept": True}, "weight_map": weight_map}
    write(source, {INDEX: json.dumps(index).encode()})
    before = checkpoint_of(source, tmp_path / "work")
    after = reshard(before, 32_000, "split", Remembering())
    assert after.locations["model-1.safetensors"] == before.locations["model-1.safetensors"]
    assert "model-2.safetensors" not in weight_files(after)
    assert tensors_of(weight_files(after)) == tensors_of(weight_files(before))
    assert json.loads(after.locations[INDEX].read_bytes())["metadata"] == index["metadata"]


def test_what_is_within_the_limit_stays_as_it_is(source: Path, tmp_path: Path) -> None:
    before = checkpoint_of(source, tmp_path / "work")
    assert reshard(before, 1 << 30, "split", Remembering()) is before


def test_parts_that_an_earlier_run_made_are_kept(source: Path, tmp_path: Path) -> None:
    before = checkpoint_of(source, tmp_path / "work")
    first = weight_files(reshard(before, 32_000, "split", Remembering()))
    inodes = {name: path.stat().st_ino for name, path in first.items()}
    lost = sorted(first)[0]
    first[lost].unlink()
    again = weight_files(reshard(before, 32_000, "split", Remembering()))
    assert {n: p.stat().st_ino for n, p in again.items() if n != lost} == {
        name: inode for name, inode in inodes.items() if name != lost
    }
    assert tensors_of(again) == tensors_of(weight_files(before))


def test_a_tensor_above_the_limit_names_the_limit_that_would_do(
    source: Path, tmp_path: Path
) -> None:
    before = checkpoint_of(source, tmp_path / "work")
    with pytest.raises(InvalidInput, match=r"layer\.0\.weight") as caught:
        reshard(before, 12_000, "split", Remembering())
    limit = int(str(caught.value.hint).split()[-1].rstrip("."))
    assert len(weight_files(reshard(before, limit, "split", Remembering()))) == 9


def test_a_large_file_in_a_folder_cannot_be_split(source: Path, tmp_path: Path) -> None:
    before = checkpoint_of(source, tmp_path / "work")
    moved = replace(
        before,
        files=(PlannedFile("extra/model.safetensors", 92_160, Role.WEIGHT),),
        locations={"extra/model.safetensors": source / "model.safetensors"},
    )
    with pytest.raises(InvalidInput, match="in a subdirectory"):
        reshard(moved, 32_000, "split", Remembering())


def test_layers_beyond_what_runtimes_stack_are_refused(tmp_path: Path) -> None:
    many = {f"layer.{number}.weight": (128, 128) for number in range(MAX_WEIGHT_LAYERS * 2)}
    directory = single(tmp_path / "source")
    write(directory, {"model.safetensors": weights(many, "F32")})
    before = checkpoint_of(directory, tmp_path / "work")
    with pytest.raises(InvalidInput) as caught:
        reshard(before, 40_000, "split", Remembering())
    limit = int(str(caught.value.hint).split()[-1].rstrip("."))
    with pytest.raises(InvalidInput, match="container runtime supports"):
        reshard(before, limit, "split", Remembering())


def test_what_the_source_says_of_a_file_is_checked_before_it_is_split(
    source: Path, tmp_path: Path
) -> None:
    before = checkpoint_of(source, tmp_path / "work")
    right = Digest.of((source / "model.safetensors").read_bytes())
    reshard(replace(before, claimed={"model.safetensors": right}), 32_000, "a", Remembering())
    wrong = replace(before, claimed={"model.safetensors": Digest.of(b"")})
    with pytest.raises(DigestMismatch, match="its source says"):
        reshard(wrong, 32_000, "b", Remembering())


@given(st.lists(st.integers(0, 5_000), max_size=30), st.integers(6_000, 40_000))
def test_parts_hold_all_tensors_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    """Law: the tensors of all parts, one after the other, are the header's."""
    tensors, start = [], 0
    for number, size in enumerate(sizes):
        tensors.append(TensorInfo(f"t{number}", "U8", (size,), start, start + size))
        start += size
    header = Header(tuple(tensors), 1_000)
    try:
        parts = plan_parts("model.safetensors", header, limit)
    except InvalidInput:
        assert max(sizes) > limit - LAYER_OVERHEAD - 2_000
        return
    assert [tensor for part in parts for tensor in part.tensors] == tensors
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        assert sum(tensor.size for tensor in part.tensors) <= limit - LAYER_OVERHEAD - 1_000


def test_a_build_with_a_limit_is_reproducible_and_within_it(source: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        copy = Path(shutil.copytree(source, tmp_path / name / "source"))
        options = BuildOptions(max_layer_size=32_000)
        build_here(copy, f"oci:{tmp_path / name / 'layout'}:v1", tmp_path / name, options)
        layout = Layout(tmp_path / name / "layout")
        digests.add(layout.resolve("v1").digest)
        model = resolve_model(layout, "v1")
        assert all(layer.size <= 32_000 for layer in model.layers)
        assert INDEX in {file.path for file in model.record.files}
    assert len(digests) == 1


def test_a_preflight_counts_on_the_split_files(source: Path, tmp_path: Path) -> None:
    planned = survey(LocalSource(source)).planned()
    assert bounded_sizes(planned, None) == planned
    bounded = bounded_sizes(planned, 32_000)
    assert max(layer.size for layer in plan_layers(bounded)) <= 32_000


def test_the_option_takes_sizes_as_people_write_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    to = f"oci:{tmp_path / 'layout'}:v1"
    done = weightyard_here(capsys, "build", source, "--to", to, "--max-layer-size", "32kB")
    assert done.code == 0, done.err
    assert all(
        layer.size <= 32_000 for layer in resolve_model(Layout(tmp_path / "layout"), "v1").layers
    )
    failed = weightyard_here(capsys, "build", source, "--to", to, "--max-layer-size", "much")
    assert (failed.code, "not a size" in failed.err) == (2, True)

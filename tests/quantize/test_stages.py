"""Stages of a worker process: what it appends is read, whatever else is in the file, and told again while it works."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import EngineFailed
from quantize.engines.worker_process import run_worker
from quantize.stages import Stage, StageReader, stage_writer

WORKER = """
import json, os, sys, time
job = json.load(sys.stdin)
with open(job["stages"], "a") as file:
    for line in ('["loading", 0, 0]', 'noise', '["running", 1, 4]'):
        file.write(line + chr(10))
        file.flush()
while not os.path.exists(job["gate"]):
    time.sleep(0.02)
sys.exit(job["code"])
"""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    reader = StageReader(tmp_path / "stages", Stage("first"))
    assert reader.look() == Stage("first")
    write = stage_writer(tmp_path / "stages")
    write(Stage("loading"))
    write(Stage("comparing", 1, 4))
    assert reader.look() == Stage("comparing", 1, 4)
    assert reader.look() == Stage("comparing", 1, 4)


@given(st.binary(max_size=60))
def test_noise_changes_nothing(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """A library may write anything, a line may be cut; the next whole line counts."""
    path = tmp_path_factory.mktemp("noise") / "stages"
    reader = StageReader(path, Stage("first"))
    path.write_bytes(noise)
    assert isinstance(reader.look().name, str)
    path.write_bytes(noise + b'\n["next", 9, 3]\n["cut')
    # Never more steps than there are.
    assert reader.look() == Stage("next", 3, 3)


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_is_followed_to_its_end(tmp_path: Path, code: int) -> None:
    told: list[Stage] = []

    def on_stage(stage: Stage) -> None:
        told.append(stage)
        # Told twice, though nothing changed: then it may end.
        if told.count(Stage("running", 1, 4)) == 2:
            (tmp_path / "gate").touch()

    def run() -> None:
        run_worker(
            [sys.executable, "-c", WORKER], {"gate": str(tmp_path / "gate"), "code": code},
            os.environ, name="working", scratch=tmp_path, on_stage=on_stage,
        )  # fmt: skip

    if code:
        with pytest.raises(EngineFailed, match="exit code 3"):
            run()
    else:
        run()
    assert {stage.name for stage in told} <= {"working", "loading", "running"}


def test_an_interruption_ends_the_worker(tmp_path: Path) -> None:
    def on_stage(stage: Stage) -> None:
        if stage.name == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker(
            [sys.executable, "-c", WORKER], {"gate": str(tmp_path / "never"), "code": 0},
            os.environ, name="working", scratch=tmp_path, on_stage=on_stage,
        )  # fmt: skip


@pytest.mark.torch
def test_an_engine_tells_its_layers(tmp_path: Path) -> None:
    """Once each, however often the engine runs them."""
    import torch  # noqa: PLC0415

    from quantize.engines.layer_stages import tell_layers  # noqa: PLC0415

    inner = torch.nn.Module()
    inner.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    model = torch.nn.Module()
    model.model = inner
    tell_layers(model, str(tmp_path / "stages"))
    reader, found = StageReader(tmp_path / "stages", Stage("first")), []
    for layer in inner.layers:
        for _ in range(3):
            layer(torch.zeros(1, 2))
        found.append(reader.look())
    assert found == [Stage("calibrating layers", 0, 2), Stage("calibrating layers", 1, 2)]
    assert len((tmp_path / "stages").read_text().splitlines()) == 2

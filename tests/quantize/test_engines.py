"""Engines in processes of their own: the real ones where they are installed, their failures always."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelimage.checkpoint_files import read_header
from modelimage.child import read_stat
from modelimage.errors import EngineFailed
from modelimage.safetensors import build_header
from quantize import engines
from quantize.calibration import load_evaluation
from quantize.engines import llm_compressor
from quantize.engines.worker_process import run_worker
from quantize.errors import EngineMissing, QualityTooLow
from quantize.quality import Gates
from quantize.quantizer import Evaluation, QuantizeOptions, quantize_checkpoint
from quantize.schemes import Format, QuantizationEngine, Scheme
from tests.servers.process import wait_until

ROOT = Path(__file__).parents[2]


def test_a_worker_that_fails_is_quoted(tmp_path: Path) -> None:
    code = "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"
    with pytest.raises(EngineFailed, match=r"exit code 3.*out of luck"):
        run_worker([sys.executable, "-c", code], {}, {}, name="gptq", scratch=tmp_path)


def test_a_worker_that_is_killed_says_so(tmp_path: Path) -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(EngineFailed, match="killed by signal 9"):
        run_worker([sys.executable, "-c", code], {}, {}, name="gptq", scratch=tmp_path)


def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="can't be started"):
        run_worker([str(tmp_path / "none")], {}, {}, name="gptq", scratch=tmp_path)


def test_a_worker_reads_its_job(tmp_path: Path) -> None:
    code = "import json, sys; open('job', 'w').write(json.load(sys.stdin)['a'])"
    run_worker([sys.executable, "-c", code], {"a": "b"}, {}, name="gptq", scratch=tmp_path)
    assert (tmp_path / "job").read_text() == "b"


# Says the worker's process id, and waits for it.
PARENT = """
import sys
from pathlib import Path
from quantize.engines.worker_process import run_worker

worker = "import os, threading; print(os.getpid(), file=open('pid.new', 'w')); os.rename('pid.new', 'pid');"
worker += "threading.Event().wait()"
run_worker([sys.executable, "-c", worker], {}, {}, name="gptq", scratch=Path(sys.argv[1]))
"""


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT) as parent:
        try:
            wait_until(pid.exists, what="the worker")
        finally:
            parent.kill()
    wait_until(lambda: not _runs(int(pid.read_text())), what="the worker's end")


def _runs(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    stat = read_stat(pid)
    return stat is not None and stat[0] not in ("Z", "X")


def test_an_interpreter_that_is_named_but_missing(tmp_path: Path) -> None:
    stated = {llm_compressor.VARIABLE: str(tmp_path / "python"), "HOME": str(tmp_path)}
    with pytest.raises(EngineMissing, match=llm_compressor.VARIABLE):
        llm_compressor.interpreter(stated)


def test_an_environment_without_the_engine() -> None:
    with pytest.raises(EngineFailed, match="no working llm-compressor"):
        llm_compressor.versions(Path(sys.executable))


@pytest.mark.slow
def test_a_gate_that_is_missed_leaves_nothing(
    smollm2: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One window: which text it is, and how much, changes nothing of what follows a gate that is missed.
    text = tmp_path_factory.mktemp("text") / "short.txt"
    text.write_text("\n\n".join(load_evaluation().samples)[:500])
    options = QuantizeOptions(
        Scheme.INT4,
        engine=QuantizationEngine.RTN,
        evaluation=Evaluation(Gates(min_top1=0.95), text),
    )
    with pytest.raises(QualityTooLow, match="top-1 agreement"):
        quantize_checkpoint(smollm2, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


# Of the real model and text, this much is enough to see whether an engine gives the same bytes twice.
LAYERS = 2
SAMPLES = 8


@pytest.fixture(scope="module")
def shallow_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model's first layers, as a checkpoint of their own."""
    root = tmp_path_factory.mktemp("shallow") / "model"
    shutil.copytree(smollm2, root, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    config = json.loads((smollm2 / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}))
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    data = []
    for path in sorted(smollm2.glob("*.safetensors")):
        header = read_header(path)
        with path.open("rb") as file:
            for tensor in header.tensors:
                if ".layers." in tensor.name and int(tensor.name.split(".")[2]) >= LAYERS:
                    continue
                file.seek(header.data_offset + tensor.start)
                data.append(file.read(tensor.size))
                wanted[tensor.name] = (tensor.dtype, tensor.shape)
    whole = build_header(wanted, {"format": "pt"}) + b"".join(data)
    (root / "model.safetensors").write_bytes(whole)
    return root


def _digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("threads", "compiles_from"), [(1, 0), (2, engines.GPTQ_COMPILES_FROM)])
def test_calibrating_twice_gives_the_same_bytes(
    shallow_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    compiles_from: int,
) -> None:
    """With engine, threads and processor pinned; on one core too, where GPTQModel wants two workers.

    The second time GPTQModel packs with its compiled extension once.
    """
    options = QuantizeOptions(
        Scheme.INT4, engine=QuantizationEngine.GPTQ, threads=threads, calibration_samples=SAMPLES
    )
    first = quantize_checkpoint(shallow_model, tmp_path / "first", options)
    monkeypatch.setattr(engines, "GPTQ_COMPILES_FROM", compiles_from)
    second = quantize_checkpoint(shallow_model, tmp_path / "elsewhere" / "second", options)
    assert _digests(first.out) == _digests(second.out)
    assert first.recipe == second.recipe
    assert first.recipe["threads"] == threads
    assert first.recipe["reproducible"] == "same engine, threads and CPU class"
    assert first.recipe["engineVersions"]["gptqmodel"]
    assert first.recipe["calibrationSamples"] == SAMPLES
    assert first.plan.format is Format.GPTQ
    _check_nothing_else_changed(shallow_model, first.out)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "elsewhere"}


def _check_nothing_else_changed(source: Path, out: Path) -> None:
    """The files of the source, byte by byte, but for config and weights; no path of this machine."""
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in source.iterdir()}
    assert str(out.parent) not in (out / "config.json").read_text()
    for name in names - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (source / name).read_bytes()

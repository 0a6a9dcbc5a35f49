"""A run that is killed or interrupted is continued shard by shard, and nothing of it is seen before."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from quantize import rtn
from quantize.quantizer import QuantizeOptions, quantize_checkpoint
from quantize.schemes import Format, QuantizationEngine, Scheme
from tests.quantize import checkpoints

ROOT = Path(__file__).parents[2]
SHARDS = 6

# Says when two shards are durable, while others are under way, and then waits for its end. Workers don't wait for the
# disk, so they are held at the end of the last shard until it has finished the first two.
CHILD = """
import sys
from pathlib import Path
from quantize.quantizer import QuantizeOptions, quantize_checkpoint
from quantize.schemes import Format, QuantizationEngine, Scheme

source, out = Path(sys.argv[1]), Path(sys.argv[2])
staged = out.parent / f".{out.name}.partial"

def halt(done, total):
    if done == total:
        while len(list(staged.glob("*.safetensors"))) < 2:
            pass
        print("two shards", flush=True)
        sys.stdin.read()

options = QuantizeOptions(
    Scheme(sys.argv[3]),
    format=Format(sys.argv[4]),
    engine=QuantizationEngine.RTN,
    threads=int(sys.argv[5]),
)
quantize_checkpoint(source, out, options, halt)
"""


def digests(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


@pytest.mark.parametrize(
    ("scheme", "format_", "threads"),
    [
        (Scheme.INT4, Format.PACK_QUANTIZED, 1),
        (Scheme.INT4, Format.GPTQ, 2),
        (Scheme.INT8, Format.INT_QUANTIZED, 2),
    ],
    ids=["int4", "int4-gptq-2-threads", "int8-2-threads"],
)
def test_a_killed_run_is_continued(
    tmp_path: Path, scheme: Scheme, format_: Format, threads: int
) -> None:
    source, out = tmp_path / "src", tmp_path / "out"
    checkpoints.write(source, checkpoints.llama(), shards=SHARDS)
    options = QuantizeOptions(scheme, format=format_, engine=QuantizationEngine.RTN)
    quantize_checkpoint(source, tmp_path / "whole", options)

    _kill_after_two_shards(source, out, scheme.value, format_.value, str(threads))
    assert not out.exists()
    staged = tmp_path / ".out.partial"
    finished = {p.name: p.stat().st_ino for p in staged.glob("*.safetensors")}
    assert 2 <= len(finished) < SHARDS
    assert list(staged.glob("*.safetensors.tmp"))

    done: list[int] = []
    result = quantize_checkpoint(source, out, options, lambda so_far, _total: done.append(so_far))
    assert digests(out) == digests(tmp_path / "whole")
    assert finished.items() <= {p.name: p.stat().st_ino for p in out.iterdir()}.items()
    assert result.quality.sqnr.matrices.keys() == checkpoints.llama().matrices.keys()
    assert done == sorted(done)
    assert done[-1] == result.plan.work_bytes
    assert not staged.exists()


def test_an_interrupted_run_ends_at_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes to the main thread, which waits for the workers: they convert nothing more of what is left."""
    source, out = tmp_path / "src", tmp_path / "out"
    checkpoints.write(source, checkpoints.llama(), shards=SHARDS)
    options = QuantizeOptions(Scheme.INT8, engine=QuantizationEngine.RTN, threads=1)
    main = threading.main_thread().ident
    assert main is not None
    waiting, stopped = threading.Event(), threading.Event()
    result, stop = Future.result, rtn._Run.stop
    seen: list[int] = []

    def told_result(future: Future[object], timeout: float | None = None) -> object:
        waiting.set()
        return result(future, timeout)

    def told_stop(run: rtn._Run) -> None:
        stop(run)
        stopped.set()

    monkeypatch.setattr(Future, "result", told_result)
    monkeypatch.setattr(rtn._Run, "stop", told_stop)

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        assert done < total
        waiting.wait()
        signal.pthread_kill(main, signal.SIGINT)
        assert stopped.wait(60)

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, out, options, interrupt)
    assert len(seen) == 1
    assert not out.exists()


def _kill_after_two_shards(*arguments: object) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"two shards\n"
        finally:
            child.kill()
    assert child.returncode == -9

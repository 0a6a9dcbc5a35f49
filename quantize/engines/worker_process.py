"""Runs a worker process: the job as JSON on stdin, output to a file, its end in the error message.

A worker ends with its parent, even one that is killed: nobody would read its result, and the next run would share the
processors with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from modelimage.child import SAFE_PATH
from modelimage.errors import EngineFailed
from quantize.stages import FILE, OnStage, Stage, StageReader, ignore_stage

TAIL_BYTES: Final = 2000
_LOOK_SECONDS: Final = 0.5
# Asks the kernel for SIGKILL when the parent ends (prctl(2), PR_SET_PDEATHSIG), which execve keeps, then becomes the
# worker. A program of its own: code between fork and exec isn't safe in a process with threads.
# The parent may end before the request, and no signal comes then: so it is compared after it.
_BOUND: Final = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(parent):
    sys.exit("the parent has ended")
os.execvp(command[0], command)
"""


def run_worker(
    command: Sequence[str],
    job: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    name: str,
    scratch: Path,
    on_stage: OnStage = ignore_stage,
) -> None:
    """Run a worker to its end in `scratch`, where engines leave logs and temporary files.

    The job gets `stages`, the file to which the worker appends its stages; `on_stage` is told the newest one twice a
    second, also when it is the same. Raises EngineFailed with the end of the worker's output.
    """
    stages = StageReader(scratch / FILE, Stage(name))
    (scratch / FILE).unlink(missing_ok=True)  # of a run that was interrupted
    # Offline: the job is a worker's only input, nothing may be downloaded.
    offline = {**environment, **SAFE_PATH, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    offline |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)}
    # A file, not a pipe: a verbose engine must neither block nor fill the memory.
    with tempfile.TemporaryFile() as log:
        try:
            with tempfile.TemporaryFile() as given:
                # A file as well: writing to a pipe would wait for a worker that doesn't read yet.
                given.write(json.dumps({**job, "stages": str(scratch / FILE)}).encode())
                given.seek(0)
                with subprocess.Popen(
                    _bound(command), stdin=given, stdout=log, stderr=subprocess.STDOUT,
                    env=offline, cwd=scratch,
                ) as worker:  # fmt: skip
                    code = _followed(worker, stages, on_stage)
        except OSError as error:
            raise EngineFailed(f"{name} can't be started: {error}") from error
        if code != 0:
            raise EngineFailed(
                f"{name} failed ({_how(code)}): {_tail(log)}",
                hint="If memory ran out, use a machine with more, or --engine rtn.",
            )


def _followed(worker: subprocess.Popen[bytes], stages: StageReader, on_stage: OnStage) -> int:
    """Tell the worker's stages until it ends; its exit code. Kills it when this is interrupted."""
    try:
        while True:
            on_stage(stages.look())
            try:
                return worker.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    except BaseException:
        # It has the GPU's memory, and nobody would wait for its result.
        worker.kill()
        raise


def _bound(command: Sequence[str]) -> list[str]:
    """The command, started so that it ends with this process. Raises OSError when there is no such program."""
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"no program {command[0]}")
    # The kernel looks at the thread that starts the worker: it waits for the worker's end.
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, 2)
    log.seek(max(0, size - TAIL_BYTES))
    return log.read().decode(errors="replace").strip()

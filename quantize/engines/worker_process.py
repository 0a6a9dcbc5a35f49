"""Runs a worker process: the job as JSON on stdin, output to a file, its end in the error message."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from modelimage.errors import EngineFailed

TAIL_BYTES: Final = 2000


def run_worker(
    command: Sequence[str],
    job: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    name: str,
    scratch: Path,
) -> None:
    """Run a worker to its end in `scratch`, where engines leave logs and temporary files.

    Raises EngineFailed with the end of the worker's output.
    """
    # Offline: the job is a worker's only input, nothing may be downloaded.
    offline = {**environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    offline |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)}
    # A file, not a pipe: a verbose engine must neither block nor fill the memory.
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                command, input=json.dumps(job).encode(), stdout=log, stderr=subprocess.STDOUT,
                env=offline, cwd=scratch, check=False,
            )  # fmt: skip
        except OSError as error:
            raise EngineFailed(f"{name} can't be started: {error}") from error
        if done.returncode != 0:
            raise EngineFailed(
                f"{name} failed ({_how(done.returncode)}): {_tail(log)}",
                hint="If memory ran out, use a machine with more, or --engine rtn.",
            )


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, 2)
    log.seek(max(0, size - TAIL_BYTES))
    return log.read().decode(errors="replace").strip()

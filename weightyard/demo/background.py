"""A `weightyard` command that runs while the demonstration goes on, with what it says in a file.

It ends with the demonstration, however that ends.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from modelimage.child import SAFE_PATH, python_module
from modelimage.errors import EngineFailed
from weightyard.console import Console

_LOOK_SECONDS: Final = 0.2


class BackgroundCommand:
    """One command in a process of its own. A context: at its end the process has ended."""

    def __init__(self, arguments: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        self._name = arguments[0]
        self._log = log
        # A file, not a pipe: nobody reads meanwhile, and a command whose pipe is full stops.
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*python_module("weightyard"), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**environ, **SAFE_PATH},
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def finish(self, console: Console) -> None:
        """Shows what the command says until it ends, then all of it. Raises EngineFailed when it fails."""
        with console.progress(f"{self._name} in the background") as progress:
            while not self.ended:
                progress.describe(next(reversed(self._lines()), ""))
                time.sleep(_LOOK_SECONDS)
        said = self._lines()
        if self._process.returncode != 0:
            raise EngineFailed(
                "\n".join([f"`weightyard {self._name}` failed in the background", *said[-5:]]),
                hint=f"All that it said is in {self._log}",
            )
        for line in said:
            console.say(line)

    def _lines(self) -> list[str]:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()

"""The demonstration: a real small model from checkpoint to answer, through the commands that a user types.

Each step is a `weightyard` command run in this process, timed, and shown with its arguments; the question goes to the
server's HTTP API. Nothing is left running in any case. A second run finds its files in the caches.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import urllib3

from modelimage.errors import EngineFailed, Unreachable
from weightyard.cli import weightyard
from weightyard.console import Console, format_table
from weightyard.demo.smollm import default_cache, smollm2_checkpoint
from weightyard.text import format_duration
from weightyard.up.state import WorkspaceDirectory

PROMPT: Final = "The capital of France is"
EXPECTED: Final = "Paris"
NAME: Final = "smollm2-demo"


class WrongAnswer(EngineFailed):
    """The model's answer isn't the one that it is known to give."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The server's answer, and its number of tokens."""

    text: str
    tokens: int


@dataclass
class Demo:
    """One run in a directory that is reused by the next. `times` collects the steps' seconds."""

    directory: Path
    console: Console
    environ: Mapping[str, str]
    clock: Callable[[], float] = time.perf_counter
    times: dict[str, float] = field(default_factory=dict)

    @property
    def image(self) -> str:
        return f"oci:{self.directory}/image:v1"

    @property
    def root(self) -> Path:
        return self.directory / "store"

    def run(self) -> Completion:
        """Runs all steps. Raises a step's errors, and WrongAnswer for an unexpected answer."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._step("checkpoint", "SmolLM2-135M-Instruct as a Hugging Face checkpoint"):
            checkpoint = smollm2_checkpoint(default_cache(self.environ))
        with self._step("build"):
            self._weightyard("build", str(checkpoint), "--to", self.image)
        with self._step("pull"):
            self._weightyard("pull", self.image, "--root", str(self.root))
        try:
            with self._step("up"):
                self._weightyard(
                    "up", "-d", str(self._workspace()), "--port", "0", "--root", str(self.root)
                )
            with self._step("ask", f"{PROMPT!r}, over HTTP"):
                answer = ask(self._url(), PROMPT)
                self.console.say(f"  {PROMPT}{answer.text}")
        finally:
            with self._step("down"):
                self._weightyard("down", NAME, "--root", str(self.root))
        if EXPECTED not in answer.text:
            raise WrongAnswer(
                f"the model went on with {answer.text!r}, which doesn't name {EXPECTED}",
                hint=f"Remove {self.directory} and run the demo again.",
            )
        return answer

    def _workspace(self) -> Path:
        """The workspace file for `up`, as a user would write it."""
        path = self.directory / "workspace.yaml"
        path.write_text(
            "apiVersion: weightyard.dev/v1alpha1\n"
            "kind: Workspace\n"
            "metadata:\n"
            f"  name: {NAME}\n"
            "spec:\n"
            "  model:\n"
            f"    image: {self.image}\n"
            "  resources:\n"
            "    gpus: 0\n"
        )
        return path

    def _url(self) -> str:
        state = WorkspaceDirectory(self.root, NAME).read()
        if state is None:
            raise EngineFailed(f"{NAME} left no state behind")
        return state.url

    @contextmanager
    def _step(self, name: str, what: str = "") -> Iterator[None]:
        if what:
            self.console.heading(f"{name}: {what}")
        start = self.clock()
        yield
        self.times[name] = self.clock() - start

    def _weightyard(self, *arguments: str) -> None:
        self.console.heading(f"$ weightyard {' '.join(arguments)}")
        weightyard.main(
            args=list(arguments), prog_name="weightyard", standalone_mode=False, obj=self.console
        )


def ask(url: str, prompt: str) -> Completion:
    """Requests the greedy continuation of a prompt, without a time limit. Raises Unreachable, EngineFailed."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stop": "\n"}
    with urllib3.PoolManager(retries=False) as http:
        try:
            reply = http.request("POST", f"{url}/v1/completions", json=body, timeout=None)
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the server at {url} doesn't answer: {error}") from error
    with suppress(ValueError, KeyError, IndexError, TypeError):
        document: dict[str, Any] = json.loads(reply.data)
        tokens = int(document["usage"]["completion_tokens"])
        return Completion(str(document["choices"][0]["text"]), tokens)
    raise EngineFailed(f"the server answered {reply.status}: {reply.data[:200]!r}")


def summary(times: Mapping[str, float], answer: Completion) -> str:
    """The final table of times, and the answer."""
    rows = [(name, format_duration(seconds)) for name, seconds in times.items()]
    rows.append(("total", format_duration(sum(times.values()))))
    return f"\n{format_table(['step', 'time'], rows)}\n\n{PROMPT}{answer.text}"


@click.command()
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=lambda: default_cache(os.environ).parent / "demo",
    show_default="~/.cache/weightyard/demo", help="Where image, cache and workspace are kept.",
)  # fmt: skip
@click.pass_obj
def demo(console: Console, directory: Path) -> None:
    """Build, cache and serve a real small model, and ask it one question."""
    run = Demo(directory, console, os.environ)
    answer = run.run()
    console.result(
        {"answer": answer.text, "tokens": answer.tokens, "seconds": run.times},
        summary(run.times, answer),
    )

"""The demonstration: a real small model from checkpoint to answer, through the commands that a user types.

Each step is a `weightyard` command run in this process, timed, and shown with its arguments; the question goes to the
server's HTTP API. Two pictures compare a pull with plain copies, and the variants with each other. Nothing is left
running in any case. A second run finds the image, with the measured quality of its variants, where the first left it.
The first builds the variants while vLLM starts, which uses one core.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
import urllib3

from modelimage.errors import EngineFailed, Unreachable
from weightyard.cli import weightyard
from weightyard.console import Console, format_table
from weightyard.demo.background import BackgroundCommand
from weightyard.demo.chart import fetches_chart, variants_chart
from weightyard.demo.comparison import (
    copy_plainly,
    evaluation_text,
    is_built,
    measured_variants,
    pull,
)
from weightyard.demo.smollm import default_cache, smollm2_checkpoint
from weightyard.options import PathName
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
    pictures: list[str] = field(default_factory=list)

    @property
    def image(self) -> str:
        return f"oci:{self.directory}/image:v1"

    @property
    def root(self) -> Path:
        return self.directory / "store"

    def run(self) -> Completion:
        """Runs all steps. Raises a step's errors, and WrongAnswer for an unexpected answer."""
        self.directory.mkdir(parents=True, exist_ok=True)
        began = self.clock()
        with self._step("checkpoint", "SmolLM2-135M-Instruct as a Hugging Face checkpoint"):
            checkpoint = smollm2_checkpoint(default_cache(self.environ))
        built = is_built(self.image)
        with self._step("build"):
            if built:
                self.console.say(f"build: {self.image} is there from an earlier run")
            else:
                self._weightyard("build", str(checkpoint), "--to", self.image)
        self._compare(checkpoint)
        with ExitStack() as beside:
            variants = None if built else beside.enter_context(self._variants(checkpoint))
            answer = self._serve()
            if variants is not None:
                with self._step("variants", "the build that went on beside"):
                    variants.finish(self.console)
        self.pictures.append(variants_chart(measured_variants(self.image)))
        self.times["total"] = self.clock() - began
        if EXPECTED not in answer.text:
            raise WrongAnswer(
                f"the model went on with {answer.text!r}, which doesn't name {EXPECTED}",
                hint=f"Remove {self.directory} and run the demo again.",
            )
        return answer

    def _serve(self) -> Completion:
        """Serves the model, asks it, and stops it in any case."""
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
        return answer

    def _variants(self, checkpoint: Path) -> BackgroundCommand:
        """The build of the variants, started; quality is measured where torch is installed, and only once."""
        measuring: tuple[str, ...] = ()
        if find_spec("torch") and find_spec("transformers"):
            text = evaluation_text(self.directory / "evaluation.txt")
            measuring = ("--evaluate", "--evaluation-text", str(text))
        else:
            self.console.say("quality isn't measured: torch and transformers aren't installed")
        # Rounding alone: it needs neither torch nor calibration data.
        arguments = (
            "build", str(checkpoint), "--to", self.image, "--variant", "int8", "--variant", "int4",
            "--engine", "rtn", *measuring,
        )  # fmt: skip
        self.console.heading(f"$ weightyard {' '.join(arguments)} &")
        return BackgroundCommand(arguments, self.directory / "variants.log", self.environ)

    def _compare(self, checkpoint: Path) -> None:
        """The same files twice the plain way, and twice through the cache."""
        plain = self.directory / "plain"
        # A store of an earlier run would hold the model: the first pull is to be a cold one.
        shutil.rmtree(self.root, ignore_errors=True)
        with self._step("compare", "the plain way (copy the files) and a pull, each twice"):
            fetches = [
                copy_plainly(checkpoint, plain, "copied, cold", self.clock),
                pull(self.image, self.root, "pulled, cold", self.console, self.clock),
                copy_plainly(checkpoint, plain, "copied again", self.clock),
                pull(self.image, self.root, "pulled again", self.console, self.clock),
            ]
        self.pictures.append(fetches_chart(fetches))

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
            "  runtime:\n"
            "    env:\n"
            "      # One process of vLLM fewer, which starts sooner and is enough for one question.\n"
            "      - name: VLLM_ENABLE_V1_MULTIPROCESSING\n"
            '        value: "0"\n'
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


def summary(times: Mapping[str, float], answer: Completion, pictures: Sequence[str] = ()) -> str:
    """The final table of times, the pictures, and the answer."""
    rows = [(name, format_duration(seconds)) for name, seconds in times.items()]
    table = format_table(["step", "time"], rows)
    return "\n" + "\n\n".join([table, *pictures, f"{PROMPT}{answer.text}"])


@click.command()
@click.option(
    "--dir", "directory", type=PathName(file_okay=False, resolve_path=True),
    default=lambda: default_cache(os.environ).parent / "demo",
    show_default="~/.cache/weightyard/demo", help="Where image, cache and workspace are kept.",
)  # fmt: skip
@click.pass_obj
def demo(console: Console, directory: Path) -> None:
    """Build, compare, cache and serve a real small model, and ask it one question."""
    run = Demo(directory, console, os.environ)
    answer = run.run()
    console.result(
        {"answer": answer.text, "tokens": answer.tokens, "seconds": run.times},
        summary(run.times, answer, run.pictures),
    )

"""The command: options to engine, results to the console, mistakes to errors with a hint."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from modelimage.errors import InvalidInput, WeightyardError
from modelimage.installation import install_command
from quantize import engines
from quantize.errors import EngineMissing, IncompatibleOptions
from quantize.quality import Quality
from tests.quantize import checkpoints
from weightyard.commands.quantize import quantize
from weightyard.console import Console


class RecordingConsole(Console):
    """Keeps what a command says."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.results: list[tuple[Any, str]] = []
        self.advanced = 0
        self.total: int | None = None

    def say(self, text: str) -> None:
        self.notes.append(text)

    def result(self, document: object, text: str) -> None:
        self.results.append((document, text))

    def progress(self, title: str, total_bytes: int | None = None) -> AbstractContextManager[Any]:
        self.total = total_bytes
        return nullcontext(self)

    def advance(self, count: int) -> None:
        self.advanced += count

    def stage(self, name: str, done: int, total: int) -> None:
        """Rounding moves no bytes of its own."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    checkpoints.write(tmp_path / "src", checkpoints.mixtral(), shards=2)
    return tmp_path / "src"


def run(console: Any, *arguments: object) -> Result:
    return CliRunner().invoke(quantize, [str(each) for each in arguments], obj=console)


def failure(*arguments: object) -> BaseException | None:
    return run(RecordingConsole(), *arguments).exception


def test_a_run_reports_bytes_recipe_and_quality(source: Path, tmp_path: Path) -> None:
    console = RecordingConsole()
    document = tmp_path / "quality.json"
    ended = run(
        console,
        source,
        tmp_path / "out",
        "--scheme",
        "int4",
        "--engine",
        "rtn",
        "--quality",
        document,
    )
    assert ended.exception is None
    found, text = console.results[0]
    assert found["recipe"]["scheme"] == "int4"
    assert "left in 16 bits, router: model.layers.0.block_sparse_moe.gate and 1 more" in text
    assert console.advanced == console.total
    assert Quality.parse(document.read_bytes()).to_json() == found["quality"]
    json.dumps(found)


def test_a_dry_run_writes_nothing_and_tells_the_size(source: Path, tmp_path: Path) -> None:
    console = RecordingConsole()
    assert run(console, source, tmp_path / "out", "--scheme", "int8", "--dry-run").exception is None
    assert not (tmp_path / "out").exists()
    told = console.results[0][0]
    run(console, source, tmp_path / "out", "--scheme", "int8")
    assert told["targetBytes"] == console.results[1][0]["targetBytes"]


def test_without_a_console_it_prints(source: Path, tmp_path: Path) -> None:
    ended = run(None, source, tmp_path / "out", "--scheme", "int8")
    assert f"wrote {tmp_path / 'out'}" in ended.stdout


def test_rounding_to_int4_warns_of_its_cost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "gptq_installed", lambda: False)
    console = RecordingConsole()
    run(console, source, tmp_path / "out", "--scheme", "int4")
    assert len(console.notes) == 1
    assert install_command("gptq") in console.notes[0]


def test_auto_takes_the_engine_that_writes_the_format(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "gptq_installed", lambda: True)
    console = RecordingConsole()
    for name in ("pack-quantized", "gptq"):
        run(console, source, tmp_path / "out", "--scheme", "int4", "--format", name, "--dry-run")
    assert [found["engine"] for found, _ in console.results] == ["rtn", "gptq"]


def test_missing_engines_say_the_command_that_installs_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "gptq_installed", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands = {
        "gptq": install_command("gptq"),
        "auto-gptq": install_command("gptq"),
        "llm-compressor": "pip install llmcompressor==",
    }
    for engine, command in commands.items():
        error = failure(source, tmp_path / "out", "--scheme", "int4", "--engine", engine)
        assert isinstance(error, EngineMissing)
        assert command in (error.hint or "")
    assert {path.name for path in tmp_path.iterdir()} == {"src"}


@pytest.mark.parametrize("asked", [["--evaluate"], ["--max-kl", "0.1"], ["--min-top1", "0.9"]])
def test_measuring_without_its_libraries_says_the_command_that_installs_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    options = ["--scheme", "int8-w8a16", *asked]
    error = failure(source, tmp_path / "out", *options)
    assert isinstance(error, EngineMissing)
    assert error.hint == f"Run: {install_command('evaluate')}"
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["--scheme", "int8", "--engine", "gptq"], IncompatibleOptions, "gptq doesn't do int8"),
        (["--scheme", "int4", "--engine", "rtn", "--format", "int-quantized"], IncompatibleOptions,
         "doesn't write int4 as int-quantized"),
        (["--scheme", "int4", "--calibration", "s3://some/set"], InvalidInput, "s3://some/set"),
        (["--scheme", "int4", "--engine", "rtn", "--group-size", "96"], IncompatibleOptions, "96"),
    ],
)  # fmt: skip
def test_mistakes(
    source: Path, tmp_path: Path, arguments: list[str], kind: type[WeightyardError], words: str
) -> None:
    error = failure(source, tmp_path / "out", *arguments)
    assert isinstance(error, kind)
    assert words in error.message
    assert error.hint
    assert [path.name for path in tmp_path.iterdir()] == ["src"]

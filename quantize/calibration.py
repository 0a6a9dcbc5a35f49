"""Calibration and evaluation text: shipped, or the user's own.

The record holds the text's digest and the number of samples; together with the engine's
version they make a variant reproducible.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import InvalidInput, NotFound
from quantize.datarows import read_texts, sample_text

CALIBRATION: Final = "calibration.txt"
EVALUATION: Final = "evaluation.txt"
PARQUET: Final = ".parquet"
# The minimum that the guides of calibrating engines recommend.
SAMPLES: Final = 128
MAX_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples of text, and the digest of their file."""

    samples: tuple[str, ...]
    digest: Digest


def load_calibration(path: Path | None = None, samples: int = SAMPLES) -> Calibration:
    """The first samples of the user's text, or of the shipped one.

    A Parquet file is read only that far. Raises NotFound, InvalidInput; EngineMissing without pyarrow.
    """
    # Never read whole: data sets may have many gigabytes.
    if _suffix(path) == PARQUET and path is not None:
        return _calibration(read_texts(path, samples), _digest(path))
    data = _shipped(CALIBRATION) if path is None else _read(path)
    found = parse_samples(data, _suffix(path))
    # The digest is of the whole file: with the number of samples it identifies them.
    return Calibration(found.samples[:samples], found.digest)


def load_evaluation(path: Path | None = None) -> Calibration:
    """The user's evaluation text, or the shipped one. Raises NotFound, InvalidInput."""
    return parse_samples(_shipped(EVALUATION) if path is None else _read(path), _suffix(path))


def parse_samples(data: bytes, suffix: str) -> Calibration:
    """The paragraphs of plain text, or from JSON lines each line's `text` or the contents of its `messages`.

    Raises InvalidInput when there is no text.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput("calibration text is not UTF-8") from error
    if suffix in (".jsonl", ".ndjson"):
        samples = [_line_text(line, number) for number, line in _lines(text)]
    else:
        samples = [part.strip() for part in text.split("\n\n")]
    return _calibration(samples, Digest.of(data))


def _lines(text: str) -> list[tuple[int, str]]:
    return [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def _line_text(line: str, number: int) -> str:
    hint = 'Write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}.'
    try:
        document = json.loads(line)
    except ValueError as error:
        raise InvalidInput(
            f"line {number} of the calibration text is not JSON", hint=hint
        ) from error
    found = sample_text(document)
    if found is None:
        raise InvalidInput(f"line {number} of the calibration text holds no text", hint=hint)
    return found


def _calibration(samples: list[str], digest: Digest) -> Calibration:
    kept = tuple(sample for sample in samples if sample)
    if not kept:
        raise InvalidInput(
            "there is no calibration text",
            hint="Give paragraphs of text, or JSON lines or Parquet with one text per row.",
        )
    return Calibration(kept, digest)


def _digest(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest.parse(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def _shipped(name: str) -> bytes:
    return (files("quantize") / "data" / name).read_bytes()


def _suffix(path: Path | None) -> str:
    return path.suffix.lower() if path else ".txt"


def _read(path: Path) -> bytes:
    try:
        # Text is read whole; larger data sets come as Parquet, of which only the beginning is read.
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no calibration file {path}") from error
    except OSError as error:
        raise InvalidInput(f"can't read the calibration file {path}: {error.strerror}") from error

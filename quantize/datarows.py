"""The text of a data set's row (a `text`, or a conversation's `messages`), and the rows of Parquet files.

pyarrow is imported on first use, and reads a few rows at a time, only as many as requested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from modelimage.errors import InvalidInput, NotFound
from modelimage.installation import install_command
from quantize.errors import EngineMissing

COLUMNS: Final = ("text", "messages")
_BATCH_ROWS: Final = 64


def sample_text(row: Any) -> str | None:
    """The text of a row parsed from JSON or Parquet; None when it has none."""
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages")
    if isinstance(messages, list) and all(isinstance(each, dict) for each in messages):
        return "\n".join(f"{each.get('role')}: {each.get('content')}" for each in messages)
    return None


def read_texts(path: Path, limit: int) -> list[str]:
    """The first `limit` rows with text of a Parquet file.

    Raises NotFound; InvalidInput for another kind of file or other columns; EngineMissing without pyarrow.
    """
    try:
        import pyarrow  # noqa: PLC0415 - most users never need it
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise EngineMissing(
            "reading Parquet needs pyarrow", hint=f"Run: {install_command('parquet')}"
        ) from error
    if not path.is_file():
        raise NotFound(f"there is no calibration file {path}")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = _column(path, file.schema_arrow.names)
            # By batches: of a file of many gigabytes only as much is read as is needed.
            return _first(file.iter_batches(_BATCH_ROWS, columns=[column]), limit)
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"{path.name} can't be read as Parquet: {error}") from error


def _column(path: Path, names: list[str]) -> str:
    for column in COLUMNS:
        if column in names:
            return column
    raise InvalidInput(
        f"{path.name} has no column {' or '.join(COLUMNS)}",
        hint=f"Rename a column, or choose another file: it has {', '.join(names)[:200]}.",
    )


def _first(batches: Iterator[Any], limit: int) -> list[str]:
    found: list[str] = []
    for batch in batches:
        found += [text for row in batch.to_pylist() if (text := sample_text(row))]
        if len(found) >= limit:
            break
    return found[:limit]

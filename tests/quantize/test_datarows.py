"""Texts out of Parquet: which column, how many rows, and files that hold none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput, NotFound
from modelimage.installation import install_command
from quantize.calibration import load_calibration
from quantize.datarows import read_texts
from quantize.errors import EngineMissing


def parquet(path: Path, columns: dict[str, Any], rows_in_group: int = 1000) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_in_group)
    return path


@given(texts=st.lists(st.text(max_size=5), min_size=1, max_size=20), limit=st.integers(1, 25))
def test_the_first_texts_that_are_not_empty(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], limit: int
) -> None:
    """Law: what is read are the first `limit` of the texts that aren't empty, in their order."""
    path = parquet(tmp_path_factory.mktemp("rows") / "a.parquet", {"text": texts}, 3)
    assert read_texts(path, limit) == [text for text in texts if text][:limit]


def test_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    path = parquet(tmp_path / "a.parquet", {"id": [1], "messages": [turns]})
    assert load_calibration(path).samples == ("user: one\nassistant: two",)


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    """What lies behind the row groups in question may be damaged: it is never looked at."""
    texts = [f"sample {n} " + "x" * 200 for n in range(4000)]
    path = parquet(tmp_path / "a.parquet", {"text": texts}, rows_in_group=100)
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(20).column(0).data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    assert read_texts(path, 128) == texts[:128]
    with pytest.raises(InvalidInput, match="can't be read as Parquet"):
        read_texts(path, 4000)


def test_columns_that_hold_no_text_are_listed(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"question": ["a"], "answer": ["b"]})
    with pytest.raises(InvalidInput, match="no column text or messages") as caught:
        load_calibration(path)
    assert "question, answer" in (caught.value.hint or "")


@pytest.mark.parametrize("column", [[1, 2], [None, None], ["", ""]])
def test_a_text_column_without_text(tmp_path: Path, column: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="no calibration text"):
        load_calibration(parquet(tmp_path / "a.parquet", {"text": column}))


@pytest.mark.parametrize("content", [b"", b"text", b"PAR1" * 20])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.parquet"):
        load_calibration(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_calibration(tmp_path / "a.parquet")


def test_without_its_reader_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EngineMissing, match="needs pyarrow") as caught:
        load_calibration(path)
    assert caught.value.hint == f"Run: {install_command('parquet')}"

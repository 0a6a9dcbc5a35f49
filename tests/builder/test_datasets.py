"""Calibration texts by name: files, and datasets of a Hub whose API is real and whose network is loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.sources.datasets import DatasetReference, calibration_file, parse_dataset
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, InvalidInput, NotFound, Unreachable
from quantize.calibration import load_calibration
from tests.servers.hub import Hub
from tests.servers.ports import free_port

UniqueName = Callable[[str], str]

names = st.from_regex(r"[A-Za-z0-9_][\w.-]{0,9}/[A-Za-z0-9_][\w.-]{0,9}", fullmatch=True)
ascii_names = names.filter(str.isascii)
revisions = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,9}", fullmatch=True)
paths = st.from_regex(r"[a-z0-9][a-z0-9./-]{0,19}", fullmatch=True)


@given(name=ascii_names, revision=st.none() | revisions, path=st.none() | paths)
def test_a_reference_round_trips(name: str, revision: str | None, path: str | None) -> None:
    """Law: `parse_dataset(str(r)) == r`."""
    reference = DatasetReference(name, revision, path)
    assert parse_dataset(str(reference)) == reference


def test_the_short_spelling_means_the_same() -> None:
    assert parse_dataset("hf://org/set@v1/a.txt") == parse_dataset("hf://datasets/org/set@v1/a.txt")


@pytest.mark.parametrize(
    "text", ["hf://", "hf://one", "hf://a/b@", "hf://a b/c", "s3://bucket/a.txt"]
)
def test_what_names_no_dataset(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        calibration_file(text)
    assert caught.value.hint


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("one")
    assert calibration_file(str(path)) == path
    with pytest.raises(NotFound):
        calibration_file(str(tmp_path / "none.txt"))


def publish(hub: Hub, name: str, root: Path, *files: str) -> str:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(f'{{"text": "in {file}"}}\n')
    return hub.add(f"datasets/{name}", root)


@pytest.mark.servers
def test_the_only_text_of_a_dataset(hub: Hub, unique_name: UniqueName, tmp_path: Path) -> None:
    name = unique_name("org/set")
    publish(hub, name, tmp_path / "set", "data/train.jsonl", "README.md")
    path = calibration_file(f"hf://{name}", endpoint=hub.url, cache=tmp_path / "cache")
    assert load_calibration(path).samples == ("in data/train.jsonl",)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["data/test.jsonl", "data/train.jsonl"], "data/train.jsonl"),
        (["train-00001-of-00002.txt", "train-00000-of-00002.txt"], "train-00000-of-00002.txt"),
        (["all/train/0001.txt", "all/train/0000.txt", "all/test/0000.txt"], "all/train/0000.txt"),
    ],
)
def test_the_first_of_the_training_split(
    hub: Hub, unique_name: UniqueName, tmp_path: Path, *, files: list[str], chosen: str
) -> None:
    name = unique_name("org/set")
    publish(hub, name, tmp_path / "set", *files)
    path = calibration_file(f"hf://{name}", endpoint=hub.url, cache=tmp_path / "cache")
    assert f"in {chosen}" in path.read_text()


@pytest.mark.servers
def test_a_dataset_in_parquet(hub: Hub, unique_name: UniqueName, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = pyarrow.table({"text": ["one", "", "two", "three"], "url": ["a", "b", "c", "d"]})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train-00000-of-00001.parquet")
    name = unique_name("org/set")
    hub.add(f"datasets/{name}", tmp_path / "set")
    path = calibration_file(f"hf://{name}", endpoint=hub.url, cache=tmp_path / "cache")
    found = load_calibration(path, samples=2)
    assert found.samples == ("one", "two")
    assert found.digest == Digest.of(path.read_bytes())


@pytest.mark.servers
def test_a_revision_and_a_file(hub: Hub, unique_name: UniqueName, tmp_path: Path) -> None:
    name = unique_name("org/set")
    first = publish(hub, name, tmp_path / "first", "a.jsonl", "b.jsonl")
    publish(hub, name, tmp_path / "second", "c.jsonl")
    given = f"hf://datasets/{name}@{first}/b.jsonl"
    path = calibration_file(given, endpoint=hub.url, cache=tmp_path / "cache")
    assert load_calibration(path).samples == ("in b.jsonl",)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("files", "path", "kind", "words"),
    [
        (["a.jsonl", "b.txt"], "", InvalidInput, "several files of text"),
        (["a.arrow"], "", InvalidInput, "no file of text"),
        (["a.arrow"], "/a.arrow", InvalidInput, "is not"),
        (["train.jsonl", "en/train.jsonl"], "", InvalidInput, "several files of text"),
        (["a.jsonl"], "/b.jsonl", NotFound, "no such file"),
    ],
)
def test_datasets_that_cannot_be_used(
    hub: Hub,
    unique_name: UniqueName,
    tmp_path: Path,
    *,
    files: list[str],
    path: str,
    kind: type[Exception],
    words: str,
) -> None:
    name = unique_name("org/set")
    publish(hub, name, tmp_path / "set", *files)
    with pytest.raises(kind, match=words) as caught:
        calibration_file(f"hf://{name}{path}", endpoint=hub.url, cache=tmp_path / "cache")
    assert getattr(caught.value, "hint", None)


@pytest.mark.servers
def test_a_dataset_that_is_not_there_or_not_for_us(
    hub: Hub, unique_name: UniqueName, tmp_path: Path
) -> None:
    """A model of the same name is no dataset."""
    name = unique_name("org/model")
    (tmp_path / "a.txt").write_text("one")
    hub.add(name, tmp_path)
    with pytest.raises(NotFound, match=name):
        calibration_file(f"hf://{name}", endpoint=hub.url, cache=tmp_path / "cache")
    gated = unique_name("org/gated")
    hub.add(f"datasets/{gated}", tmp_path, gated=True)
    with pytest.raises(AccessDenied):
        calibration_file(f"hf://{gated}/a.txt", endpoint=hub.url, cache=tmp_path / "cache")


def test_a_hub_that_is_away(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable):
        calibration_file("hf://org/set", endpoint=endpoint, cache=tmp_path / "cache")

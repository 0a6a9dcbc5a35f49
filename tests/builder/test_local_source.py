"""Directories as sources: links to files are followed, everything odd is refused by name."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from builder.sources.factory import open_source
from builder.sources.local import LocalSource
from modelimage.errors import InvalidCheckpoint, InvalidInput, NotFound
from tests.builder.checkpoints import single, write


def test_files_are_listed_sorted_with_their_sizes(tmp_path: Path) -> None:
    write(tmp_path, {"b.json": b"12", "a/c.json": b"", "a.json": b"1"})
    listing = LocalSource(tmp_path).list()
    assert [(file.path, file.size) for file in listing.files] == [
        ("a.json", 1),
        ("a/c.json", 0),
        ("b.json", 2),
    ]


def test_links_to_files_are_followed_as_a_hub_cache_needs(tmp_path: Path) -> None:
    write(tmp_path, {"blobs/abc": b"weights"})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to("../blobs/abc")
    source = LocalSource(snapshot)
    (file,) = source.list().files
    assert (file.path, file.size) == ("model.safetensors", 7)
    assert source.fetch(file, lambda _: None).read_bytes() == b"weights"


def test_hidden_things_are_told_and_not_looked_into(tmp_root: Path) -> None:
    single(tmp_root)
    (tmp_root / ".git").mkdir()
    unix_socket(tmp_root / ".git" / "socket")
    listing = LocalSource(tmp_root).list()
    assert listing.ignored == {".git": "hidden"}


def link_to_directory(path: Path) -> None:
    path.symlink_to(path.parent.parent)


def link_in_a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (link_to_directory, "links to a directory"),
        (link_in_a_loop, "can't be followed"),
        (link_to_nothing, "isn't there"),
        (named_pipe, "a named pipe"),
        (unix_socket, "a socket"),
    ],
)
def test_what_is_no_file_is_refused_by_name(tmp_root: Path, make: object, what: str) -> None:
    directory = single(tmp_root / "model")
    make(directory / "odd")  # type: ignore[operator]
    with pytest.raises(InvalidCheckpoint, match=f"'odd' in the checkpoint .*{what}"):
        LocalSource(directory).list()


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        LocalSource(tmp_path / "nothing").list()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput):
        LocalSource(tmp_path / "file").list()


def test_nothing_of_the_machine_is_in_what_the_record_says(tmp_path: Path) -> None:
    source = open_source(str(tmp_path), {})
    assert (source.uri, source.revision) == ("local", "")
    labelled = open_source(str(tmp_path), {}, uri="git://example/x", revision="7")
    assert (labelled.uri, labelled.revision) == ("git://example/x", "7")


@pytest.mark.parametrize(
    "text", ["ftp://example/x", "hf://", "hf://a/b/c", "hf://a/b@", "hf://../x"]
)
def test_a_source_that_can_not_be_understood(text: str) -> None:
    with pytest.raises(InvalidInput):
        open_source(text, {})


def test_labels_are_for_directories_only() -> None:
    with pytest.raises(InvalidInput):
        open_source("hf://org/name", {}, uri="x")

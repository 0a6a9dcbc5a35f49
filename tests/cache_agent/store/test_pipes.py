"""A pipe in the place of a file: whoever reads it sees damage, and never waits for somebody to write to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cache_agent.store.disk import open_plain, read_plain
from modelimage.errors import WeightyardError
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, begin_download, pull

_watched: list[Path] = []
_waited: list[str] = []


def _on_open(event: str, args: tuple[object, ...]) -> None:
    """Fails an open that would wait, instead of waiting."""
    if event != "open" or not _watched or not isinstance(args[0], str | bytes | os.PathLike):
        return
    path, flags = os.fspath(args[0]), int(str(args[2] or 0))
    with suppress(OSError):
        if Path(os.fsdecode(path)).is_fifo() and not flags & os.O_NONBLOCK:
            _waited.append(os.fsdecode(path))
            raise AssertionError(f"{os.fsdecode(path)} was opened as if it were a file")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[None]:
    _watched.append(tmp_path)
    yield
    _watched.clear()
    waited = _waited.copy()
    _waited.clear()
    assert waited == []


sys.addaudithook(_on_open)


def test_a_pipe_and_a_device_have_no_bytes(tmp_path: Path, watched: None) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        assert read_plain(path) == b""
        with pytest.raises(FileNotFoundError):
            open_plain(path)


def test_a_pipe_anywhere_in_a_store_is_damage_and_holds_nobody_up(
    open_node: NodeFactory, watched: None
) -> None:
    first, second = (simple_image(weights=[5000], seed=number) for number in (1, 2))
    partly, record, contents = simple_image(seed=3)
    images = {"reg.test/m1": first[0], "reg.test/m2": second[0], "reg.test/m3": partly}
    node = open_node(images)
    for name in ("reg.test/m1", "reg.test/m2"):
        pull(node, f"{name}:v1")
    large = max(record.files, key=lambda file: file.size)
    begin_download(node, record, large, contents[large.path])
    root = node.store.first.paths.root
    # The ledger and the locks are held open.
    held = {each.name for each in root.iterdir() if each.is_file()}
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in held)
    assert len(files) > 15
    for path in (each for each in files if each.is_file()):
        path.unlink()
        os.mkfifo(path)
        with suppress(WeightyardError):
            node.check()
        for model in node.store.models.all():
            with suppress(WeightyardError):
                node.store.models.record(model.key)
            with suppress(WeightyardError):
                node.store.models.origin(model.key)
        node.check(repair=True)
        for name in ("reg.test/m1", "reg.test/m2"):
            pull(node, f"{name}:v1")
        assert node.check().findings == []
        # What was read before isn't read again, such as what is known of a repository.
        if path.is_fifo():
            path.unlink()

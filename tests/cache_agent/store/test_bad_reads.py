"""A disk that fails to read (EIO): what can't be read is fetched again, and nothing goes wrong by it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.node.node import Node
from modelimage.record import CHUNK_SIZE
from tests.cache_agent.crashes import BadSectors, FailingRead, UnreadableFile
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, begin_download, pull


def scrub(node: Node) -> int:
    options = MaintenanceOptions(scrub_period=1.0, scrub_rate=0)
    return Maintenance(node.store, node.repairer, options).round()


def test_a_chunk_that_cannot_be_read_is_fetched_again_into_a_new_file(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, record, contents = simple_image(weights=[2 * CHUNK_SIZE + 1000])
    node = open_node({"reg.test/m": image})
    model = pull(node).model
    large = max(record.files, key=lambda file: file.size)
    path = node.store.files.path(large.digest)
    disk = BadSectors(path, CHUNK_SIZE + 5000, CHUNK_SIZE + 5001)
    monkeypatch.setattr(os, "preadv", disk)
    view = node.check()
    assert [finding.kind for finding in view.findings] == ["unreadable"]
    image.requests.clear()
    open_node.now += 100
    assert scrub(node) == 1
    assert [len(wanted) for _, wanted in image.requests] == [CHUNK_SIZE]
    assert disk.failed >= 2
    assert path.stat().st_ino != disk.inode
    assert files_of(model.path) == contents
    assert node.check().findings == []


def test_each_read_of_a_pull_that_resumes_may_fail_once(
    open_node: NodeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what it had, since that isn't believed without a bitmap, and reads back for sha256."""
    image, record, contents = simple_image(weights=[60_000])
    large = next(file for file in record.files if file.size == 60_000)

    def pulls(root: Path, disk: FailingRead) -> None:
        node = NodeFactory(root, open_node.stack)({"reg.test/m": image})
        node.store.first.partials.begin(record)
        node.store.first.partials.open(large, room=None).close()
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", disk)
            assert files_of(pull(node).path) == contents
        assert node.check().findings == []
        node.close()

    counting = FailingRead()
    pulls(tmp_path / "count", counting)
    assert counting.reads >= 1
    for at in range(counting.reads):
        pulls(tmp_path / f"{at}", FailingRead(at))


@pytest.mark.parametrize("name", ["journal", "bitmap"])
def test_notes_of_a_download_that_cannot_be_read_cost_only_what_they_noted(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    image, record, contents = simple_image(weights=[2 * CHUNK_SIZE])
    large = max(record.files, key=lambda file: file.size)
    node = open_node({"reg.test/m": image})
    begin_download(node, record, large, contents[large.path])
    node.close()
    pattern = {"journal": "*.json", "bitmap": "*.bitmap"}[name]
    [path] = node.store.first.paths.partial.glob(pattern)
    disk = UnreadableFile(path)
    monkeypatch.setattr(os, "fdopen", disk)
    again = open_node({"reg.test/m": image})
    assert files_of(pull(again).path) == contents
    assert disk.failed >= 1
    fetched = sum(len(r) for digest, r in image.requests if digest == large.layer and len(r) > 1)
    assert fetched == {"journal": 2, "bitmap": 1}[name] * CHUNK_SIZE
    assert again.check().findings == []


def test_notes_of_a_model_that_cannot_be_read_are_found_and_made_again(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, record, contents = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    pull(node)
    disk = UnreadableFile(node.store.first.paths.origin(record.key))
    monkeypatch.setattr(os, "fdopen", disk)
    assert [finding.kind for finding in node.check().findings] != []
    node.check(repair=True)
    assert files_of(pull(node).path) == contents
    assert node.check().findings == []
    assert disk.failed >= 1


def test_a_file_that_was_replaced_since_it_was_found_damaged_is_not_set_aside(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image(weights=[9000])
    node = open_node({"reg.test/m": image})
    path = pull(node).path
    store = node.store.first
    file = max(record.files, key=lambda each: each.size)
    seen = store.repairer.state_of(file.digest)
    stored = store.paths.file(file.digest)
    fresh = stored.with_name("fresh")
    fresh.write_bytes(contents[file.path])
    fresh.chmod(0o444)
    fresh.rename(stored)
    store.repairer.relink(file.digest)
    assert store.repairer.set_aside(file.digest, seen) == []
    assert files_of(path) == contents
    assert store.repairer.set_aside(file.digest, store.repairer.state_of(file.digest)) == [
        record.key
    ]

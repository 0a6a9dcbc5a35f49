"""A process that may open no more files: what it can't look at is neither damaged nor missing, and stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_agent.api.errors import from_view, status_of, to_view
from cache_agent.errors import DiskFailed, Exhausted
from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.observability.events import Event, Events, FileDamaged
from cache_agent.store.disk import Disk, listed, reading
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull

CODES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Noted(Events):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


@contextmanager
def no_descriptors(root: Path, code: int) -> Iterator[None]:
    """Nothing below a directory can be opened."""
    opened = os.open

    def refused(path: object, *args: object, **kwargs: object) -> int:
        if str(path).startswith(str(root)):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", refused)
        yield


@pytest.mark.parametrize("code", CODES)
def test_a_scrub_takes_no_file_for_damaged(open_node: NodeFactory, code: int) -> None:
    image, _, contents = simple_image(weights=[50_000])
    noted = Noted()
    node = open_node({"reg.test/m": image}, events=noted)
    model = pull(node).model
    image.requests.clear()
    open_node.now += 100
    maintenance = Maintenance(
        node.store, node.repairer, MaintenanceOptions(scrub_period=1.0, scrub_rate=0)
    )
    with no_descriptors(node.store.first.paths.root, code), pytest.raises(Exhausted):
        maintenance.round()
    assert not [each for each in noted.events if isinstance(each, FileDamaged)]
    assert maintenance.round() == 0
    assert not image.requests
    assert files_of(model.path) == contents
    assert node.check().findings == []


@pytest.mark.parametrize("code", CODES)
def test_neither_the_disk_nor_a_bug_is_blamed(tmp_path: Path, code: int) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with no_descriptors(tmp_path, code):
        for use in (
            lambda: listed(tmp_path),
            lambda: Disk().open_partial(tmp_path / "f", 1),
            lambda: Disk().sync_directory(tmp_path),
        ):
            with pytest.raises(Exhausted) as caught:
                use()
            assert "dmesg" not in caught.value.hint
            assert not isinstance(caught.value, DiskFailed)
    with pytest.raises(Exhausted), reading(tmp_path):
        raise OSError(code, "none")


def test_it_is_told_as_what_it_is() -> None:
    error = Exhausted("x", hint="y")
    assert status_of(error) == 503
    assert type(from_view(to_view(error))) is Exhausted

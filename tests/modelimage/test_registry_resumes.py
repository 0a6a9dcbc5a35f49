"""Pushes that die, are asked to stop or find another at work: what the next one goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelimage.access import Access
from modelimage.registry.upload_state import UploadStates
from modelimage.repository import BlobContent, StopRequested
from tests.modelimage.conformance import BLOB, blob_content, described, read_all
from tests.modelimage.test_registry_faults import (
    CHUNK,
    SMALL_CHUNKS,
    Opener,
    repository_at,
    through,
)
from tests.servers.faulty_registry import BufferedUploads

__all__ = ["through"]

pytestmark = pytest.mark.servers


class KilledProcess(BaseException):
    """Stands for the process's end: nothing catches it."""


def dying_content(after: int) -> BlobContent:
    """BLOB, from a process that is killed once it has sent `after` bytes in all."""
    left = after

    def read(offset: int) -> Iterator[bytes]:
        nonlocal left
        for start in range(offset, len(BLOB), 10_000):
            if left <= 0:
                raise KilledProcess
            left -= 10_000
            yield BLOB[start : start + 10_000]

    return BlobContent(described(BLOB), read)


def test_another_process_goes_on_where_a_killed_one_ended(through: Opener, tmp_path: Path) -> None:
    memory = UploadStates(tmp_path / "uploads")
    proxy, first = through(BufferedUploads(), memory=memory)
    with pytest.raises(KilledProcess):
        first.put_blob(dying_content(after=5 * CHUNK + 20_000))
    proxy.seen.clear()
    second = repository_at(proxy.host, first.repository, Access(), SMALL_CHUNKS, memory)
    counts: list[int] = []
    second.put_blob(blob_content(BLOB), counts.append)
    assert read_all(second, described(BLOB)) == BLOB
    assert sum(counts) == len(BLOB)
    first_sent = next(request for request in proxy.seen if request.is_upload)
    assert first_sent.headers["Content-Range"].startswith(f"{5 * CHUNK}-")
    assert list((tmp_path / "uploads").iterdir()) == [], "a finished upload leaves no note"


def test_ten_deaths_cost_five_percent(through: Opener, tmp_path: Path) -> None:
    """Where the registry keeps upload state, all attempts together send at most 1.05 times the blob."""
    profile = replace(SMALL_CHUNKS, chunk_bytes=len(BLOB) // 250)
    memory = UploadStates(tmp_path / "uploads")
    proxy, first = through(BufferedUploads(), profile=profile, memory=memory)
    for _ in range(10):
        process = repository_at(proxy.host, first.repository, Access(), profile, memory)
        with pytest.raises(KilledProcess):
            process.put_blob(dying_content(after=len(BLOB) // 12))
    last = repository_at(proxy.host, first.repository, Access(), profile, memory)
    last.put_blob(blob_content(BLOB))
    assert read_all(last, described(BLOB)) == BLOB
    assert proxy.uploaded <= 1.05 * len(BLOB)


def test_who_is_asked_to_stop_ends_with_the_chunk_and_nothing_is_sent_twice(
    through: Opener, tmp_path: Path
) -> None:
    """Also to a registry that can't go on in the middle of a chunk, as docker-registry."""
    memory = UploadStates(tmp_path / "uploads")
    proxy, first = through(memory=memory)

    def stop(count: int) -> None:
        if proxy.uploaded > 2 * CHUNK:
            raise StopRequested

    with pytest.raises(StopRequested):
        first.put_blob(blob_content(BLOB), stop)
    assert 2 * CHUNK < proxy.uploaded < len(BLOB)
    second = repository_at(proxy.host, first.repository, Access(), SMALL_CHUNKS, memory)
    counts: list[int] = []
    second.put_blob(blob_content(BLOB), counts.append)
    assert read_all(second, described(BLOB)) == BLOB
    assert (proxy.uploaded, sum(counts)) == (len(BLOB), len(BLOB))


def test_a_note_of_other_bytes_is_forgotten(through: Opener, tmp_path: Path) -> None:
    """A session that was begun with damaged content fails by digest once, and then the blob is sent anew."""
    memory = UploadStates(tmp_path / "uploads")
    proxy, first = through(BufferedUploads(), memory=memory)

    def read(offset: int) -> Iterator[bytes]:
        if offset >= 3 * CHUNK:
            raise KilledProcess
        yield bytes(CHUNK)

    with pytest.raises(KilledProcess):
        first.put_blob(BlobContent(described(BLOB), read))
    second = repository_at(proxy.host, first.repository, Access(), SMALL_CHUNKS, memory)
    counts: list[int] = []
    second.put_blob(blob_content(BLOB), counts.append)
    assert read_all(second, described(BLOB)) == BLOB
    assert sum(counts) == len(BLOB)


def test_an_upload_that_another_process_holds_gets_a_session_of_its_own(
    through: Opener, tmp_path: Path
) -> None:
    memory = UploadStates(tmp_path / "uploads")
    proxy, first = through(memory=memory)

    def read(offset: int) -> Iterator[bytes]:
        other = repository_at(proxy.host, first.repository, Access(), SMALL_CHUNKS, memory)
        other.put_blob(blob_content(BLOB))
        yield BLOB[offset:]

    first.put_blob(BlobContent(described(BLOB), read))
    assert read_all(first, described(BLOB)) == BLOB
    begun = [r for r in proxy.seen if r.method == "POST"]
    assert len(begun) == 2


def test_a_note_is_its_owners_alone_and_a_damaged_one_recalls_nothing(tmp_path: Path) -> None:
    memory = UploadStates(tmp_path)
    with memory.note("https://r/v2/m/blobs/x") as note:
        assert note.recall() is None
        (path,) = tmp_path.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_text('{"location": "x", "off')
        assert note.recall() is None

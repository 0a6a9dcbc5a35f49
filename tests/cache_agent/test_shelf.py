"""The shelf: what it keeps, for whom, and that damage counts as missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.shelf import Known, Shelf
from cache_agent.store.disk import Disk
from cache_agent.store.paths import StorePaths
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest

TYPE = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    made = StorePaths(tmp_path)
    made.records.mkdir(parents=True)
    return made


def described(data: bytes) -> Descriptor:
    return Descriptor(TYPE, Digest.of(data), len(data))


def test_a_document_is_found_under_the_repository_that_it_came_from_only(paths: StorePaths) -> None:
    shelf = Shelf(paths, Disk())
    shelf.keep("reg/a", [(described(b"one"), b"one")], {"v1": Digest.of(b"one")})
    for again in (shelf, Shelf(paths, Disk())):
        assert again.find("reg/a", Digest.of(b"one")) == (TYPE, b"one")
        assert again.tagged("reg/a", "v1") == Digest.of(b"one")
        assert again.find("reg/b", Digest.of(b"one")) is None
        assert again.tagged("reg/b", "v1") is None


def test_damage_counts_as_missing(paths: StorePaths) -> None:
    shelf = Shelf(paths, Disk())
    shelf.keep("reg/a", [(described(b"one"), b"one")])
    path = next((paths.root / "images/documents").iterdir())
    path.chmod(0o644)
    path.write_bytes(b"two")
    assert shelf.find("reg/a", Digest.of(b"one")) is None
    entry = next((paths.root / "images/repositories").iterdir())
    entry.write_bytes(b"{")
    assert Shelf(paths, Disk()).find("reg/a", Digest.of(b"one")) is None


def test_what_is_not_wanted_is_forgotten_and_shared_documents_stay(paths: StorePaths) -> None:
    shelf = Shelf(paths, Disk())
    for repository in ("reg/a", "reg/b"):
        contents = (b"shared", repository.encode())
        shelf.keep(repository, [(described(data), data) for data in contents])
    assert shelf.prune(lambda place: place == "reg/b") == 2
    assert shelf.find("reg/b", Digest.of(b"shared")) == (TYPE, b"shared")
    assert shelf.find("reg/a", Digest.of(b"shared")) is None
    assert len(list((paths.root / "images/documents").iterdir())) == 2


def test_public_places_are_remembered_only_with_something_to_give(paths: StorePaths) -> None:
    shelf = Shelf(paths, Disk())
    shelf.note_public("made/up", 5.0)
    assert shelf.public_since("made/up") is None
    shelf.keep("reg/a", [(described(b"one"), b"one")])
    shelf.note_public("reg/a", 5.0)
    assert Shelf(paths, Disk()).public_since("reg/a") == 5.0
    shelf.note_public("reg/a", None)
    assert Shelf(paths, Disk()).public_since("reg/a") is None


texts = st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3)


@given(
    st.builds(
        Known, st.text(max_size=9), texts, texts, st.none() | st.integers(0, 1 << 40).map(float)
    )
)
def test_entries_survive_the_disk(known: Known) -> None:
    assert Known.parse(known.to_bytes()) == known

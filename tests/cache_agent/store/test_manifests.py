"""The manifest cache: what it keeps, for whom, how much at most, and that damage counts as missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.store import manifests
from cache_agent.store.disk import Disk
from cache_agent.store.manifests import ManifestCache, RepositoryEntry
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
    manifest_cache = ManifestCache(paths, Disk())
    manifest_cache.keep("reg/a", [(described(b"one"), b"one")], {"v1": Digest.of(b"one")})
    for again in (manifest_cache, ManifestCache(paths, Disk())):
        assert again.find("reg/a", Digest.of(b"one")) == (TYPE, b"one")
        assert again.tagged("reg/a", "v1") == Digest.of(b"one")
        assert again.find("reg/b", Digest.of(b"one")) is None
        assert again.tagged("reg/b", "v1") is None


def test_damage_counts_as_missing(paths: StorePaths) -> None:
    manifest_cache = ManifestCache(paths, Disk())
    manifest_cache.keep("reg/a", [(described(b"one"), b"one")])
    path = next((paths.root / "images/documents").iterdir())
    path.chmod(0o644)
    path.write_bytes(b"two")
    assert manifest_cache.find("reg/a", Digest.of(b"one")) is None
    entry = next((paths.root / "images/repositories").iterdir())
    entry.write_bytes(b"{")
    assert ManifestCache(paths, Disk()).find("reg/a", Digest.of(b"one")) is None


def test_what_is_not_wanted_is_forgotten_and_shared_documents_stay(paths: StorePaths) -> None:
    manifest_cache = ManifestCache(paths, Disk())
    for repository in ("reg/a", "reg/b"):
        contents = (b"shared", repository.encode())
        manifest_cache.keep(repository, [(described(data), data) for data in contents])
    assert manifest_cache.prune(lambda place: place == "reg/b") == 2
    assert manifest_cache.find("reg/b", Digest.of(b"shared")) == (TYPE, b"shared")
    assert manifest_cache.find("reg/a", Digest.of(b"shared")) is None
    assert len(list((paths.root / "images/documents").iterdir())) == 2


def test_public_places_are_remembered_only_with_something_to_give(paths: StorePaths) -> None:
    manifest_cache = ManifestCache(paths, Disk())
    manifest_cache.note_public("made/up", 5.0)
    assert manifest_cache.public_since("made/up") is None
    manifest_cache.keep("reg/a", [(described(b"one"), b"one")])
    manifest_cache.note_public("reg/a", 5.0)
    assert ManifestCache(paths, Disk()).public_since("reg/a") == 5.0
    manifest_cache.note_public("reg/a", None)
    assert ManifestCache(paths, Disk()).public_since("reg/a") is None


def test_a_repository_keeps_its_newest_documents(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_MOST_DOCUMENTS", 4)
    manifest_cache = ManifestCache(paths, Disk())
    contents = [b"%d" % number for number in range(5)]
    for number, data in enumerate(contents):
        manifest_cache.keep("reg/a", [(described(data), data)], {f"v{number}": Digest.of(data)})
        os.utime(paths.documents / Digest.of(data).hex, (number, number))
    held = [data for data in contents if manifest_cache.find("reg/a", Digest.of(data))]
    assert len(held) == 2
    assert contents[-1] in held
    assert [manifest_cache.tagged("reg/a", f"v{n}") for n in range(5)] == [
        Digest.of(data) if data in held else None for data in contents
    ]
    manifest_cache.prune(lambda place: True)
    assert len(list(paths.documents.iterdir())) == 2


def test_the_least_recent_of_too_many_repositories_are_forgotten(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_MOST_REPOSITORIES", 2)
    manifest_cache = ManifestCache(paths, Disk())
    for number, repository in enumerate(("hub:a", "hub:b", "hub:c")):
        manifest_cache.keep(repository, [(described(b"one"), b"one")])
        (entry,) = [each for each in paths.repositories.iterdir() if each.stat().st_mtime > 10]
        os.utime(entry, (number, number))
    manifest_cache.prune(lambda place: True)
    held = [each for each in ("hub:a", "hub:b", "hub:c") if manifest_cache.documents(each)]
    assert held == ["hub:b", "hub:c"]


texts = st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3)


@given(
    st.builds(
        RepositoryEntry,
        st.text(max_size=9),
        texts,
        texts,
        st.none() | st.integers(0, 1 << 40).map(float),
    )
)
def test_entries_survive_the_disk(known: RepositoryEntry) -> None:
    assert RepositoryEntry.parse(known.to_bytes()) == known

"""A layer that holds one file is proven while the file comes from a place that proves nothing: it isn't read again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.in_order_hash import InOrderHasher, LayerHash
from cache_agent.fetch.reuse_check import ReuseCheck
from cache_agent.sources.directory import SharedDirectory
from cache_agent.sources.image import ImageSource
from cache_agent.sources.shared import SharedSource
from cache_agent.sources.source import ResolvedSource, Source
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.record import CHUNK_SIZE
from modelimage.repository import ImageReader
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, pull

CONTENTS = {"model.safetensors": noise(CHUNK_SIZE + 77, 5)}
OTHER = {"model.safetensors": noise(CHUNK_SIZE + 77, 6)}


@given(st.binary(max_size=50), st.lists(st.binary(max_size=50), max_size=5), st.binary(max_size=50))
def test_both_digests_come_out_whatever_was_tried_in_between(
    before: bytes, chunks: list[bytes], after: bytes
) -> None:
    following = InOrderHasher(len(chunks), LayerHash(before, after))
    for index, chunk in enumerate(chunks):
        failed = following.lease(index)
        assert failed is not None
        failed.update(memoryview(b"wrong bytes"))
        following.drop_lease()
        assert following.layer() is None
        turn = following.lease(index)
        assert turn is not None
        turn.update(memoryview(chunk))
        following.end_lease(turn)
    data = b"".join(chunks)
    assert following.digest() == Digest(hashlib.sha256(data).hexdigest())
    assert following.layer() == Digest.of(before + data + after)


def from_shared(tmp_path: Path) -> Callable[[ResolvedSource, ImageReader, str], Sequence[Source]]:
    place = SharedDirectory(tmp_path / "shared")
    for data in (*CONTENTS.values(), *OTHER.values()):
        place.put(Digest.of(data), len(data), iter([memoryview(data)]))

    def sources(resolved: ResolvedSource, reader: ImageReader, repository: str) -> Sequence[Source]:
        image = ImageSource(reader, resolved.record, resolved.layers, repository)
        return [SharedSource(place), image]

    return sources


def test_the_layer_is_proven_without_reading_it_again(
    open_node: NodeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Digest:
        raise AssertionError("the layer was read again")

    monkeypatch.setattr(ReuseCheck, "_rebuilt", never)
    record, blobs = make_record([CONTENTS])
    image = MemoryImage.of([record], blobs)
    node = open_node({"reg.test/m": image}, sources=from_shared(tmp_path))
    result = pull(node)
    assert files_of(result.path) == CONTENTS
    assert sum(len(wanted) for _, wanted in image.requests) == 1, "only whether it may be read"


def test_a_record_that_claims_what_its_layer_doesnt_hold_gets_nothing_of_it(
    open_node: NodeFactory, tmp_path: Path
) -> None:
    """The layer holds one file; the record says that it is another one, which the shared place has."""
    forged, _ = make_record([OTHER])
    [(true, blob)] = make_record([CONTENTS])[1].items()
    files = tuple(replace(file, layer=true) for file in forged.files)
    layers = tuple(replace(layer, digest=true) for layer in forged.layers)
    record = replace(forged, files=files, layers=layers)
    image = MemoryImage.of([record], {true: blob})
    node = open_node({"reg.test/m": image}, sources=from_shared(tmp_path))
    with pytest.raises(DigestMismatch):
        pull(node)
    assert node.store.models.all() == []

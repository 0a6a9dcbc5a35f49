"""Pulling whole images into a store: what ends up on disk, what is fetched, what is not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cache_agent.errors import Cancelled
from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.values import PullRequest
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    Busy,
    DigestMismatch,
    InvalidInput,
    NotFound,
    UnknownVariant,
    Unreachable,
)
from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE, Record
from modelimage.reference import parse_image
from tests.cache_agent.faults import Away, BreaksAfter, Wrapped
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import PATIENT, NodeFactory, pull


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "weightyard.json"
    }


def test_a_pulled_model_is_a_directory_of_read_only_links_to_verified_files(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image()
    node = open_node({"reg.test/m": image})
    result = pull(node)
    assert files_of(result.path) == contents
    assert (result.path / "weightyard.json").read_bytes() == record.to_bytes()
    assert result.path == node.store.first.paths.models / record.key.hex
    for file in record.files:
        stored = node.store.first.paths.file(file.digest)
        assert stored.stat().st_ino == (result.path / file.path).stat().st_ino
        assert stored.stat().st_mode & 0o777 == 0o444
    assert not list(node.store.first.paths.partial.iterdir())


def test_small_files_of_a_layer_come_in_one_request_and_equal_ones_once(
    open_node: NodeFactory,
) -> None:
    image, record, _ = simple_image(weights=[100])
    pull(open_node({"reg.test/m": image}))
    bundle = next(f.layer for f in record.files if f.path == "config.json")
    assert [digest for digest, _ in image.requests].count(bundle) == 1


def test_a_pull_asks_for_each_manifest_once(open_node: NodeFactory) -> None:
    class Counting(Wrapped):
        def manifest(self, descriptor: Descriptor) -> bytes:
            asked.append(descriptor.digest)
            return super().manifest(descriptor)

    asked: list[Digest] = []
    image, _, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": Counting(image)})
    pull(node)
    assert asked
    assert len(asked) == len(set(asked))
    pull(node)
    assert len(asked) == 2 * len(set(asked)), "the next one has to show again that it may"


def test_a_second_pull_fetches_nothing(open_node: NodeFactory) -> None:
    image, record, _ = simple_image()
    node = open_node({"reg.test/m": image})
    first = pull(node)
    image.requests.clear()
    second = pull(node)
    assert second.path == first.path
    assert image.requests == []
    assert second.reused == sum({f.digest: f.size for f in record.files}.values())


def test_variants_share_the_files_they_have_in_common(open_node: NodeFactory) -> None:
    shared = {"tokenizer.json": noise(9000, 1)}
    bf16, blobs = make_record([{"a.safetensors": noise(5000, 2)}, shared])
    int8, more = make_record([{"a.safetensors": noise(2500, 3)}, shared], variant="int8")
    image = MemoryImage.of([bf16, int8], {**blobs, **more})
    node = open_node({"reg.test/m": image})
    one, two = pull(node), pull(node, variant="int8")
    assert one.model.variant == "bf16"
    assert two.model.variant == "int8"
    names = [one.path / "tokenizer.json", two.path / "tokenizer.json"]
    assert names[0].stat().st_ino == names[1].stat().st_ino
    assert two.reused == 9000


def test_an_unknown_variant_and_an_unknown_image_are_told_apart(open_node: NodeFactory) -> None:
    image, _, _ = simple_image(weights=[10])
    node = open_node({"reg.test/m": image})
    with pytest.raises(UnknownVariant):
        pull(node, variant="int3")
    with pytest.raises(NotFound):
        pull(node, "reg.test/m:v9")
    with pytest.raises(InvalidInput):
        node.pull(PullRequest(parse_image("docker:thing")))


def test_chunks_verified_before_are_not_fetched_again(open_node: NodeFactory, root: Path) -> None:
    image, record, contents = simple_image(weights=[3 * CHUNK_SIZE])
    big = next(f for f in record.files if f.size > CHUNK_SIZE)
    broken = BreaksAfter(image, big.layer, CHUNK_SIZE)
    node = open_node({"reg.test/m": broken}, engine=EngineOptions(streams=1))
    with pytest.raises(Unreachable):
        pull(node)
    node.close()
    image.requests.clear()
    again = open_node({"reg.test/m": image})
    result = pull(again)
    assert files_of(result.path) == contents
    # Two chunks, and the byte that shows that the caller may read what was there before.
    fetched = sum(len(r) for digest, r in image.requests if digest == big.layer)
    assert fetched == 2 * CHUNK_SIZE + 1


def test_after_a_reboot_chunks_are_read_again_before_they_are_believed(
    open_node: NodeFactory,
) -> None:
    image, record, contents = simple_image(weights=[3 * CHUNK_SIZE])
    big = next(f for f in record.files if f.size > CHUNK_SIZE)
    broken = BreaksAfter(image, big.layer, 2 * CHUNK_SIZE)
    node = open_node({"reg.test/m": broken}, engine=EngineOptions(streams=1))
    with pytest.raises(Unreachable):
        pull(node)
    node.close()
    data = next(node.store.first.paths.partial.glob("*.data"))
    with data.open("r+b") as file:  # a page that never reached the disk
        file.seek(5)
        file.write(bytes(4096))
    image.requests.clear()
    result = pull(open_node({"reg.test/m": image}, boot="boot-2"))
    assert files_of(result.path) == contents
    # Beside the chunks one byte: what was there before this pull proves no right to the layer.
    asked = [r for digest, r in image.requests if digest == big.layer and len(r) > 1]
    starts = sorted(r.start // CHUNK_SIZE for r in asked)
    assert starts == [0, 2]


def test_wrong_bytes_from_the_only_source_end_the_pull_and_publish_nothing(
    open_node: NodeFactory,
) -> None:
    image, record, _ = simple_image(weights=[1000])
    layer = next(f.layer for f in record.files if f.path.endswith(".safetensors"))
    blob = bytearray(image.blobs[layer])
    blob[700] ^= 1
    image.blobs[layer] = bytes(blob)
    node = open_node({"reg.test/m": image})
    with pytest.raises(DigestMismatch):
        pull(node)
    assert node.store.models.all() == []
    assert not list(node.store.first.paths.models.iterdir())


def test_a_record_that_claims_anothers_sha256_is_given_nothing(open_node: NodeFactory) -> None:
    secret, _, contents = simple_image(weights=[4000], seed=7)
    node = open_node({"reg.test/secret": secret})
    pull(node, "reg.test/secret:v1")
    target = "model-00000.safetensors"
    forged = forge(target, contents[target], claimed_from=b"other bytes here")
    node2_images = {"reg.test/evil": forged}
    open_node.images.update(node2_images)
    with pytest.raises(DigestMismatch):
        pull(node, "reg.test/evil:v1")
    assert len(node.store.models.all()) == 1


def test_a_file_claimed_inside_a_layer_that_does_not_hold_it_is_not_linked(
    open_node: NodeFactory,
) -> None:
    secret, record, _ = simple_image(weights=[4000], seed=8)
    target = "model-00000.safetensors"
    node = open_node({"reg.test/secret": secret})
    pull(node, "reg.test/secret:v1")
    # The thief knows digests and chunk digests, but not the bytes; its layer holds zeros of the same size.
    real = next(f for f in record.files if f.path == target)
    fake, blobs = make_record([{target: bytes(real.size)}])
    lying = replace_file(fake, digest=real.digest, chunks=real.chunks)
    open_node.images["reg.test/evil"] = MemoryImage.of([lying], blobs)
    with pytest.raises(DigestMismatch):
        pull(node, "reg.test/evil:v1")


def test_what_another_s_pull_left_half_done_proves_nothing_to_who_claims_it(
    open_node: NodeFactory,
) -> None:
    """All chunks are there, verified; only the landing is left. The thief's own image must give them all the same."""
    _, record, contents = simple_image(weights=[4000], seed=8)
    target = "model-00000.safetensors"
    real = next(file for file in record.files if file.path == target)
    node = open_node()
    left = node.store.first.partials.open(real, room=None)
    left.write(memoryview(contents[target]), 0)
    left.mark(0)
    left.close()
    fake, blobs = make_record([{target: bytes(real.size)}])
    lying = replace_file(fake, digest=real.digest, chunks=real.chunks)
    open_node.images["reg.test/evil"] = MemoryImage.of([lying], blobs)
    with pytest.raises(DigestMismatch):
        pull(node, "reg.test/evil:v1")
    assert node.store.models.all() == []


def test_the_same_model_from_another_repository_is_linked_once_its_layer_is_proven(
    open_node: NodeFactory,
) -> None:
    image, record, _ = simple_image(weights=[4000])
    mirror = MemoryImage(image.blobs, image.manifests, image.names)
    node = open_node({"reg.test/m": image, "reg.test/mirror": mirror})
    pull(node)
    result = pull(node, "reg.test/mirror:v1")
    assert result.fetched == 0
    # One byte of each layer was asked for: the proof that the caller may read it.
    assert {r for _, r in mirror.requests if r != ByteRange(0, 1)} == set()
    assert len(mirror.requests) == len(record.layers)


def test_a_cached_image_is_found_while_its_registry_is_away(open_node: NodeFactory) -> None:
    image, _, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    first = pull(node)
    open_node.images["reg.test/m"] = Away()
    again = pull(node)
    assert again.path == first.path
    assert again.stale
    with pytest.raises(Unreachable):
        pull(node, "reg.test/m:v2")


def test_two_processes_cannot_open_one_store(open_node: NodeFactory) -> None:
    node = open_node({})
    with pytest.raises(Busy, match=f"pid {os.getpid()}"):
        open_node({})
    node.close()


def test_a_cancelled_pull_ends_soon_and_keeps_what_was_verified(open_node: NodeFactory) -> None:
    image, record, contents = simple_image(weights=[CHUNK_SIZE + 5])
    big = next(f for f in record.files if f.size > CHUNK_SIZE)
    stuck = BreaksAfter(image, big.layer, CHUNK_SIZE, hang=True)
    node = open_node({"reg.test/m": stuck}, engine=PATIENT)
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    stuck.hanging.wait()
    handle.cancel()
    with pytest.raises(Cancelled):
        handle.result()
    image.requests.clear()
    open_node.images["reg.test/m"] = image
    assert files_of(pull(node).path) == contents
    # The last five bytes, and one that shows that the caller may read the layer.
    asked = [len(r) for digest, r in image.requests if digest == big.layer]
    assert sorted(asked) == [1, 5]


def replace_file(record: Record, *, digest: Digest, chunks: tuple[str, ...]) -> Record:
    return replace(
        record, files=(replace(record.files[0], digest=digest, chunks=chunks), *record.files[1:])
    )


def forge(path: str, real: bytes, *, claimed_from: bytes) -> MemoryImage:
    """An image whose record claims the sha256 of `real` for a file of other bytes, over those bytes' own chunks."""
    other = claimed_from.ljust(len(real), b"!")[: len(real)]
    record, blobs = make_record([{path: other}])
    lying = replace_file(record, digest=Digest.of(real), chunks=record.files[0].chunks)
    return MemoryImage.of([lying], blobs)

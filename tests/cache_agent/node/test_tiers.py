"""The tiers: one conformance suite for every kind of source and shared place, and what their order and absence mean."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from cache_agent.config import SharedSection, TierSection
from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.values import PullRequest
from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.node.tiers import Tiers
from cache_agent.sources.decorators import Breaker, Limited, WithBreaker
from cache_agent.sources.directory import CLAIM_SECONDS, SharedDirectory
from cache_agent.sources.hub import HubSource
from cache_agent.sources.image import ImageSource
from cache_agent.sources.other_root import OtherRootSource
from cache_agent.sources.s3 import S3Bucket
from cache_agent.sources.shared import SharedSource, SharedStore, populate_shared
from cache_agent.sources.source import ChunkRange, Source
from cache_agent.sources.throttle import Throttle
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    NotFound,
    Unreachable,
    WeightyardError,
)
from modelimage.ranges import ByteRange
from modelimage.record import Record
from modelimage.reference import parse_image
from modelimage.repository import ImageReader
from tests.cache_agent.faults import Empty, Stalling
from tests.cache_agent.fetch.test_pull import files_of, replace_file
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.servers.hub import Hub
from tests.servers.s3 import S3

CONTENTS = {"model.safetensors": noise(300_000, 3), "tokenizer.json": noise(5000, 4)}


@pytest.fixture
def record() -> Record:
    return make_record([CONTENTS])[0]


@pytest.fixture
def directory(tmp_path: Path) -> SharedDirectory:
    return SharedDirectory(tmp_path / "shared")


@pytest.fixture
def bucket(s3: S3, unique_name: Callable[[str], str]) -> S3Bucket:
    name = unique_name("bucket")
    boto3.client("s3", **s3.client_options()).create_bucket(Bucket=name)
    return S3Bucket(name, "cache/", s3.client_options())


@pytest.fixture(params=["directory", pytest.param("bucket", marks=pytest.mark.servers)])
def place(request: pytest.FixtureRequest) -> SharedStore:
    made: SharedStore = request.getfixturevalue(request.param)
    return made


def put(place: SharedStore, data: bytes) -> Digest:
    digest = Digest.of(data)
    place.put(digest, len(data), iter([memoryview(data)]))
    return digest


def read_all(source: Source, record: Record, *names: str) -> bytes:
    files = [file for file in record.files if file.path in names]
    with source.open([ChunkRange(f, 0, ByteRange(0, f.size)) for f in files]) as stream:
        return drain(stream.readinto)


def drain(readinto: Callable[[memoryview], int]) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(10_000))
    while count := readinto(buffer):
        out += buffer[:count]
    return bytes(out)


# -- every shared place ------------------------------------------------------------------------


def test_a_place_gives_back_any_range_of_what_was_put(place: SharedStore) -> None:
    data = noise(200_000, 9)
    digest = put(place, data)
    assert place.has(digest, len(data))
    assert not place.has(digest, len(data) + 1)
    for wanted in (ByteRange(0, len(data)), ByteRange(5, 6), ByteRange(1000, 150_001)):
        with place.open(digest, wanted) as stream:
            assert drain(stream.readinto) == data[wanted.start : wanted.stop]


def test_a_place_says_not_found_for_what_it_has_not(place: SharedStore) -> None:
    absent = Digest.of(b"absent")
    assert not place.has(absent, 6)
    with pytest.raises(NotFound), place.open(absent, ByteRange(0, 1)) as stream:
        stream.readinto(memoryview(bytearray(1)))


def test_a_claim_is_given_once(place: SharedStore) -> None:
    digest = Digest.of(b"claimed")
    assert place.claim(digest)
    assert not place.claim(digest)
    put(place, b"claimed")
    assert place.claim(digest), "a claim ends with the write"


def test_what_breaks_off_while_it_is_put_is_not_there(place: SharedStore) -> None:
    def broken() -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise DigestMismatch("rotten")

    digest = Digest.of(b"half and half")
    with pytest.raises(DigestMismatch):
        place.put(digest, 13, broken())
    assert not place.has(digest, 13)
    assert not place.has(digest, 4)


def test_write_back_copies_what_is_missing_once_and_nothing_rotten(
    place: SharedStore, tmp_path: Path
) -> None:
    data = noise(9_000_000, 11)
    path = tmp_path / "file"
    path.write_bytes(data)
    digest = Digest.of(data)
    read: list[int] = []
    assert populate_shared(place, digest, path, read.append)
    assert sum(read) == len(data)
    assert not populate_shared(place, digest, path, read.append)
    with place.open(digest, ByteRange(0, len(data))) as stream:
        assert drain(stream.readinto) == data
    rotten = Digest.of(b"something else")
    with pytest.raises(DigestMismatch):
        populate_shared(place, rotten, path, read.append)
    assert not place.has(rotten, len(data))


def test_a_claim_of_a_node_that_died_grows_old(tmp_path: Path) -> None:
    now = [1e9]
    place = SharedDirectory(tmp_path, clock=lambda: now[0])
    digest = Digest.of(b"x")
    assert place.claim(digest)
    (tmp_path / "claims" / digest.hex).touch()
    now[0] = (tmp_path / "claims" / digest.hex).stat().st_mtime + CLAIM_SECONDS + 1
    assert place.claim(digest)
    assert not place.claim(digest)


@pytest.mark.servers
def test_s3_errors_are_the_projects_own(s3: S3, bucket: S3Bucket, deserted: str) -> None:
    absent = S3Bucket("no-such-bucket", "", s3.client_options())
    with pytest.raises(NotFound):
        absent.put(Digest.of(b""), 0, iter([]))
    gone = S3Bucket("b", "", {**s3.client_options(), "endpoint_url": f"http://{deserted}"})
    with pytest.raises(Unreachable):
        gone.has(Digest.of(b""), 0)
    with pytest.raises(NotFound), bucket.open(Digest.of(b"absent"), ByteRange(0, 5)) as stream:
        stream.readinto(memoryview(bytearray(5)))


def test_s3_without_credentials_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = S3Bucket("b", "", {"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"})
    with pytest.raises(AccessDenied, match="no credentials for s3://b"):
        place.has(Digest.of(b""), 0)


# -- every source ------------------------------------------------------------------------------


@pytest.fixture(
    params=["image", "directory", pytest.param("bucket", marks=pytest.mark.servers),
            pytest.param("hub", marks=pytest.mark.servers), "decorated", "another root", "peer"]
)  # fmt: skip
def source(
    request: pytest.FixtureRequest,
    record: Record,
    tmp_path: Path,
    unique_name: Callable[[str], str],
) -> Source:
    """Each kind of source over the same two files."""
    image = MemoryImage.of([record], make_record([CONTENTS])[1])
    layers = tuple(
        Descriptor("application/vnd.oci.image.layer.v1.tar", layer.digest, layer.size)
        for layer in record.layers
    )
    from_image = ImageSource(image, record, layers, "reg.test/m")
    match request.param:
        case "image":
            return from_image
        case "decorated":
            throttle = Throttle(1e12, lambda: 0.0)
            limited = Limited(from_image, throttle, lambda seconds: None)
            return WithBreaker(limited, Breaker(lambda: 0.0))
        case "peer":
            node = request.getfixturevalue("open_node")({"reg.test/m": image})
            pull(node)
            warm: Source = request.getfixturevalue("peer_of")(node, public={"reg.test/m"})
            return warm
        case "another root":
            open_node: NodeFactory = request.getfixturevalue("open_node")
            node = open_node({"reg.test/m": image})
            pull(node)
            return OtherRootSource(node.store.first)
        case "hub":
            hub: Hub = request.getfixturevalue("hub")
            name = unique_name("org/model")
            directory = tmp_path / "repository"
            directory.mkdir()
            for path, data in CONTENTS.items():
                (directory / path).write_bytes(data)
            commit = hub.add(name, directory)
            published = replace(record, source=f"hf://{name}", revision=commit)
            made = HubSource.of(published, hub.url, None)
            assert made is not None
            return made
        case _:
            place: SharedStore = request.getfixturevalue(request.param)
            for data in CONTENTS.values():
                put(place, data)
            return SharedSource(place)


def test_a_source_gives_pieces_back_to_back(source: Source, record: Record) -> None:
    assert read_all(source, record, "model.safetensors") == CONTENTS["model.safetensors"]
    both = read_all(source, record, "model.safetensors", "tokenizer.json")
    assert both == CONTENTS["model.safetensors"] + CONTENTS["tokenizer.json"]
    file = record.files[0]
    with source.open([ChunkRange(file, 0, ByteRange(77, 5000))]) as stream:
        assert drain(stream.readinto) == CONTENTS[file.path][77:5000]


def test_a_source_serves_several_threads(source: Source, record: Record) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(read_all(source, record, "tokenizer.json")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENTS["tokenizer.json"]] * 4


@pytest.mark.servers
def test_the_hub_says_what_is_wrong(
    hub: Hub, record: Record, unique_name: Callable[[str], str]
) -> None:
    absent = HubSource.of(replace(record, source="hf://no/such", revision="0" * 40), hub.url, None)
    assert absent is not None
    with pytest.raises((NotFound, AccessDenied)):
        read_all(absent, record, "tokenizer.json")
    quantized = replace(record, source="hf://a/b", revision="1", quantization={"scheme": "int8"})
    assert HubSource.of(quantized, hub.url, None) is None
    assert HubSource.of(record, hub.url, None) is None


def test_a_place_that_fails_is_left_alone_and_tried_again(record: Record) -> None:
    now = [0.0]
    image = MemoryImage.of([record], make_record([CONTENTS])[1])
    source = WithBreaker(
        SharedSource(SharedDirectory(Path("/proc/1/mem/nowhere"))),
        Breaker(lambda: now[0], after=3, rest=30.0),
    )
    assert image is not None
    for _ in range(3):
        with pytest.raises(Unreachable):
            read_all(source, record, "tokenizer.json")
    with pytest.raises(NotFound, match="isn't used for a while"):
        read_all(source, record, "tokenizer.json")
    now[0] = 31.0
    with pytest.raises(Unreachable):
        read_all(source, record, "tokenizer.json")


# -- a node with tiers --------------------------------------------------------------------------


def test_each_tier_serves_when_those_before_it_are_off(
    open_node: NodeFactory, directory: SharedDirectory
) -> None:
    image, record, contents = simple_image(weights=[90_000])
    for file in record.files:
        put(directory, contents[file.path])
    config = TierSection(
        shared=(SharedSection(directory=directory.path),), order=("shared", "registry")
    )
    tiers = Tiers(config, open_node._reader)
    node = open_node({"reg.test/m": image}, sources=tiers)
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    result = handle.result()
    assert result is not None
    assert files_of(result.path) == contents
    assert {tier for tier, _, _ in handle.snapshot().by_source} == {"shared"}
    node.store.models.remove(result.model.key)
    tiers.reconfigure(TierSection(order=("registry",)), 0.0)
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    handle.result()
    assert {tier for tier, _, _ in handle.snapshot().by_source} == {"registry"}


def test_mirrors_are_asked_first_and_the_origin_when_they_fail(open_node: NodeFactory) -> None:
    image, _, contents = simple_image(weights=[90_000])
    tiers = Tiers(TierSection(mirrors={"reg.test": ("near.test", "far.test")}), open_node._reader)
    images: dict[str, ImageReader] = {
        "reg.test/m": image,
        "near.test/m": Empty(image),
        "far.test/m": image,
    }
    node = open_node(images, sources=tiers)
    handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    result = handle.result()
    assert result is not None
    assert files_of(result.path) == contents
    assert {name for _, name, _ in handle.snapshot().by_source} == {"far.test/m"}


def test_the_shared_tier_gives_nothing_to_a_forged_record(
    open_node: NodeFactory, directory: SharedDirectory
) -> None:
    secret = noise(40_000, 21)
    real, _ = make_record([{"w.safetensors": secret}])
    put(directory, secret)
    fake, blobs = make_record([{"w.safetensors": bytes(len(secret))}])
    lying = replace_file(fake, digest=real.files[0].digest, chunks=real.files[0].chunks)
    config = TierSection(shared=(SharedSection(directory=directory.path),))
    node = open_node(
        {"reg.test/evil": MemoryImage.of([lying], blobs)}, sources=Tiers(config, open_node._reader)
    )
    with pytest.raises(WeightyardError):
        pull(node, "reg.test/evil:v1")
    assert node.store.models.all() == []


def test_a_cold_node_fills_the_shared_place_and_the_next_one_needs_no_registry(
    open_node: NodeFactory, directory: SharedDirectory
) -> None:
    image, record, contents = simple_image(weights=[90_000])
    node = open_node({"reg.test/m": image})
    pull(node)
    upkeep = Maintenance(
        node.store, node.repairer, MaintenanceOptions(scrub_rate=0), shared=lambda: [directory]
    )
    upkeep.round()
    assert all(directory.has(f.digest, f.size) for f in record.files)
    node.close()
    assert contents


def test_a_stalled_tier_is_passed_over(open_node: NodeFactory, directory: SharedDirectory) -> None:
    image, _, contents = simple_image(weights=[50_000])
    tiers = Tiers(TierSection(mirrors={"reg.test": ("slow.test",)}), open_node._reader)
    node = open_node(
        {"reg.test/m": image, "slow.test/m": Stalling(image)},
        sources=tiers,
        engine=EngineOptions(streams=2, stall_seconds=0.2),
    )
    assert files_of(pull(node).path) == contents

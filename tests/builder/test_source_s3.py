"""A bucket as a source: a real server (moto), and a proxy before it that does what networks do at their worst."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.sources.factory import open_source
from builder.sources.objects import BucketReference, ObjectSource
from builder.sources.parts import PartFile
from builder.sources.s3 import S3Settings, _whole_checksum, parse_s3, s3_source
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    Busy,
    InvalidCheckpoint,
    InvalidInput,
    NotWritable,
    Unreachable,
)
from tests.builder.buckets import FILES, Answer, Bucket, FaultyStore
from tests.servers.s3 import S3


@pytest.fixture
def bucket(s3: S3, unique_name: Callable[[str], str]) -> Bucket:
    return Bucket(s3, unique_name("weights"))


@pytest.mark.parametrize("text", ["s3://bucket", "s3://my-bucket.x/a/b", "s3://bucket/a b/c=d"])
def test_a_reference_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_s3(text)) == text


def test_slashes_around_a_prefix_mean_nothing() -> None:
    assert (
        parse_s3("s3://bucket/a/")
        == parse_s3("s3://bucket//a")
        == BucketReference("s3://", "bucket", "a")
    )


@pytest.mark.parametrize("text", ["s3://", "s3://B", "s3:///key", "s3://a_b/c", "s3://bucket/a\nb"])
def test_what_is_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_s3(text)


def test_it_is_opened_by_its_scheme(tmp_path: Path) -> None:
    source = open_source("s3://bucket/a/b", {"XDG_CACHE_HOME": str(tmp_path)})
    assert isinstance(source, ObjectSource)
    assert source.uri == "s3://bucket/a/b"
    with pytest.raises(InvalidInput, match="label"):
        open_source("s3://bucket/a/b", {}, revision="1")


@pytest.mark.servers
def test_a_checksum_of_the_whole_is_claimed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"a": b"data"}, ChecksumAlgorithm="SHA256")
    bucket.put({"b": b"data"})
    claims = {file.path: file.claimed for file in bucket.source(tmp_path).list().files}
    assert claims == {"a": Digest.of(b"data"), "b": None}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {"ChecksumSHA256": base64.b64encode(hashlib.sha256(b"x").digest()).decode()},
            Digest.of(b"x"),
        ),
        ({"ChecksumSHA256": "AAAA-3", "ChecksumType": "COMPOSITE"}, None),
        ({"ChecksumSHA256": "AAAA", "ChecksumType": "COMPOSITE"}, None),
        ({}, None),
    ],
)
def test_a_checksum_of_parts_claims_nothing(
    answer: dict[str, str], expected: Digest | None
) -> None:
    assert _whole_checksum(answer) == expected


@pytest.mark.servers
def test_an_object_that_changes_during_the_build_is_noticed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    source = bucket.source(tmp_path)
    files = source.list().files
    bucket.put({"model.safetensors": b"y" * len(FILES["model.safetensors"])})
    model = next(file for file in files if file.path == "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="changed"):
        source.fetch(model, lambda _: None)


@pytest.mark.servers
def test_an_object_that_changes_between_parts_is_noticed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(FILES)

    def overwrite(number: int, answer: Answer) -> Answer:
        if number == 1:
            bucket.put({"model.safetensors": b"y" * len(FILES["model.safetensors"])})
        return answer.cut_at(10) if number == 1 else answer

    with FaultyStore(bucket.server.url, overwrite) as proxy:
        source = bucket.source(tmp_path, endpoint_url=proxy.url)
        model = next(file for file in source.list().files if file.path == "model.safetensors")
        with pytest.raises(InvalidCheckpoint, match="changed"):
            source.fetch(model, lambda _: None)


@pytest.mark.servers
def test_nobody_there(tmp_path: Path, s3: S3) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {**s3.client_options(), "endpoint_url": f"http://127.0.0.1:{port}"}
    source = s3_source(
        BucketReference("s3://", "bucket"),
        tmp_path,
        S3Settings(client=options, timeout=1.0, attempts=1),
    )
    with pytest.raises(Unreachable):
        source.list()


@pytest.mark.servers
def test_no_credentials(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    with pytest.raises(AccessDenied, match="no credentials"):
        s3_source(BucketReference("s3://", "bucket"), tmp_path).list()


@pytest.mark.parametrize(
    "options",
    [{"endpoint_url": "not an address"}, {"region_name": "a b"}, {"endpoint_url": "x://"}],
)
def test_settings_that_make_no_sense(tmp_path: Path, s3: S3, options: dict[str, str]) -> None:
    settings = S3Settings(client={**s3.client_options(), **options}, timeout=1.0)
    with pytest.raises(InvalidInput):
        s3_source(BucketReference("s3://", "bucket"), tmp_path, settings).list()


@pytest.mark.servers
def test_a_directory_that_cannot_be_written(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put({"a": b"1"})
    (tmp_path / "file").write_text("no directory")
    source = bucket.source(tmp_path / "file" / "work")
    files = source.list().files
    with pytest.raises(NotWritable):
        source.fetch(files[0], lambda _: None)


# Parts


@given(
    size=st.integers(min_value=0, max_value=100),
    part=st.integers(min_value=1, max_value=40),
    order=st.randoms(use_true_random=False),
    stops=st.sets(st.integers(min_value=0, max_value=100)),
)
def test_parts_make_the_file_in_any_order_through_any_stops(
    tmp_path_factory: pytest.TempPathFactory, size: int, part: int, order: Any, stops: set[int]
) -> None:
    path = tmp_path_factory.mktemp("parts") / "file"
    data = os.urandom(size)
    written = 0
    while not path.exists():
        with PartFile.open(path, size, part) as parts:
            missing = parts.missing()
            assert parts.done_bytes == size - sum(len(parts.span(each)) for each in missing)
            order.shuffle(missing)
            for number in missing:
                span = parts.span(number)
                parts.write(data[span.start : span.stop], span.start)
                written += 1
                if written in stops:
                    break
                parts.mark(number)
            else:
                parts.publish()
    assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with PartFile.open(tmp_path / "file", 10, 5), pytest.raises(Busy):
        PartFile.open(tmp_path / "file", 10, 5).__enter__()


def test_a_note_without_its_data_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.done").write_bytes(b"\1\1")
    with PartFile.open(tmp_path / "file", 10, 5) as parts:
        assert parts.missing() == [0, 1]

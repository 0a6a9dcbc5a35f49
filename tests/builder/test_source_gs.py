"""Google Cloud Storage as a source: a server of its API, and a proxy before it that does what bad networks do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.sources.factory import SCHEMES, open_source
from builder.sources.google_storage import GoogleStorageSettings
from builder.sources.gs import gs_source, parse_gs
from builder.sources.objects import BucketReference
from modelimage.errors import (
    AccessDenied,
    InvalidCheckpoint,
    InvalidInput,
    Unreachable,
)
from tests.builder.buckets import FILES, Answer, FaultyStore, GsBucket
from tests.servers.gcs import GoogleStorageServer


@pytest.fixture
def bucket(gcs: GoogleStorageServer, unique_name: Callable[[str], str]) -> GsBucket:
    return GsBucket(gcs, unique_name("weights"))


@pytest.mark.parametrize("text", ["gs://bucket", "gs://my_bucket.x/a/b", "gs://bucket/a b/c=d"])
def test_a_reference_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_gs(text)) == text


@pytest.mark.parametrize("text", ["gs://", "gs://B", "gs:///key", "gs://-a/c", "gs://bucket/a\nb"])
def test_what_is_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a bucket"):
        parse_gs(text)


def test_each_scheme_is_opened_by_the_form_that_it_shows(tmp_path: Path) -> None:
    for scheme in SCHEMES:
        text = scheme.form.replace("[@REVISION]", "").replace("VERSION", "1").lower()
        assert text.startswith(scheme.prefix)
        assert open_source(text, {"XDG_CACHE_HOME": str(tmp_path)}).uri.startswith(scheme.prefix)
        with pytest.raises(InvalidInput, match="label"):
            open_source(text, {}, revision="1")


def test_an_unknown_scheme_is_told_all_known_ones() -> None:
    with pytest.raises(InvalidInput) as caught:
        open_source("ftp://bucket/a", {})
    assert all(scheme.form in str(caught.value.hint) for scheme in SCHEMES)


@pytest.mark.servers
def test_the_emulator_that_the_environment_names_is_asked(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put({"a": b"data"}, prefix="")
    environment = {"STORAGE_EMULATOR_HOST": bucket.server.url, "XDG_CACHE_HOME": str(tmp_path)}
    source = open_source(f"gs://{bucket.name}", environment)
    (file,) = source.list().files
    assert source.fetch(file, lambda _: None).read_bytes() == b"data"


@pytest.mark.servers
def test_an_object_that_changes_during_the_build_is_noticed(
    bucket: GsBucket, tmp_path: Path
) -> None:
    bucket.put(FILES)
    source = bucket.source(tmp_path)
    model = next(file for file in source.list().files if file.path == "model.safetensors")
    bucket.put({"model.safetensors": b"y" * len(FILES["model.safetensors"])})
    with pytest.raises(InvalidCheckpoint, match="replaced"):
        source.fetch(model, lambda _: None)
    remote = source.remote(model)
    assert remote is not None
    with pytest.raises(InvalidCheckpoint, match="replaced"):
        b"".join(remote.read(0))


@pytest.mark.servers
def test_an_object_stored_compressed_is_refused(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put({"a": b"not gzip, but said to be"}, content_encoding="gzip")
    with pytest.raises(InvalidCheckpoint, match="Content-Encoding"):
        bucket.source(tmp_path).list()


@pytest.mark.servers
def test_bytes_with_another_checksum_are_fetched_again(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)

    def spoil(number: int, answer: Answer) -> Answer:
        body = b"?" + answer.body[1:] if number == 1 else answer.body
        return Answer(answer.status, body, answer.headers)

    with FaultyStore(bucket.server.url, spoil) as proxy:
        source = bucket.source(tmp_path, endpoint=proxy.url)
        model = next(file for file in source.list().files if file.path == "model.safetensors")
        with pytest.raises(InvalidCheckpoint, match="checksum"):
            source.fetch(model, lambda _: None)
        assert source.fetch(model, lambda _: None).read_bytes() == FILES["model.safetensors"]
        proxy.gets.clear()
        remote = bucket.source(tmp_path / "other", endpoint=proxy.url)
        remote.list()
        stream = remote.remote(model)
        assert stream is not None
        passed = bytearray()
        with pytest.raises(InvalidCheckpoint, match="checksum"):
            passed.extend(byte for data in stream.read(0) for byte in data)
        assert len(passed) < model.size


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = GoogleStorageSettings(endpoint=f"http://127.0.0.1:{port}", timeout=1.0, retry=0.0)
    with pytest.raises(Unreachable):
        gs_source(BucketReference("gs://", "bucket"), tmp_path, settings).list()


def test_credentials_that_are_named_and_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "key.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", missing)
    settings = GoogleStorageSettings.from_environment({"GOOGLE_APPLICATION_CREDENTIALS": missing})
    with pytest.raises(AccessDenied, match="no credentials") as caught:
        gs_source(BucketReference("gs://", "bucket"), tmp_path, settings).list()
    assert "workload identity" in str(caught.value.hint)


def test_an_endpoint_that_makes_no_sense(tmp_path: Path) -> None:
    settings = GoogleStorageSettings(endpoint="x://", timeout=1.0, retry=0.0)
    with pytest.raises((InvalidInput, Unreachable)):
        gs_source(BucketReference("gs://", "bucket"), tmp_path, settings).list()

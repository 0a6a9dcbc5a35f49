"""Google Cloud Storage as a source: a server of its API, and a proxy before it that does what bad networks do."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.build import BuildOptions, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.factory import SCHEMES, open_source
from builder.sources.gs import gs_source, parse_gs
from builder.sources.interface import SourceFile
from builder.sources.local import LocalSource
from builder.sources.objects import BucketReference, ObjectSource
from modelimage.access import Access
from modelimage.errors import (
    AccessDenied,
    InvalidCheckpoint,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.google_storage import GoogleStorageSettings
from modelimage.reference import LayoutReference
from tests.builder.buckets import FILES, PART, TRANSFER, Answer, FaultyS3
from tests.builder.checkpoints import single
from tests.builder.reports import Remembering
from tests.servers.gcs import GoogleStorageServer

PREFIX = "models/tiny"


class GsBucket:
    """A bucket of the test's own on the shared server."""

    def __init__(self, server: GoogleStorageServer, name: str) -> None:
        self.server, self.name = server, name
        server.make_bucket(name)

    def put(self, files: Mapping[str, bytes], prefix: str = f"{PREFIX}/", **metadata: str) -> None:
        objects = {prefix + path: data for path, data in files.items()}
        self.server.put(self.name, objects, **metadata)

    def source(self, work: Path, prefix: str = PREFIX, **options: Any) -> ObjectSource:
        settings = self.server.settings(**options)
        reference = BucketReference("gs://", self.name, prefix)
        return gs_source(reference, work, settings, TRANSFER, page_size=3)


@pytest.fixture
def bucket(gcs: GoogleStorageServer, unique_name: Callable[[str], str]) -> GsBucket:
    return GsBucket(gcs, unique_name("weights"))


def fetched(source: ObjectSource) -> dict[str, bytes]:
    return {
        file.path: source.fetch(file, lambda _: None).read_bytes() for file in source.list().files
    }


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
def test_everything_below_a_prefix(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    bucket.put({"models/tiny2/other": b"", f"{PREFIX}/folder/": b"", f"{PREFIX}/": b""}, prefix="")
    source = bucket.source(tmp_path)
    listing = source.list()
    assert [(file.path, file.size) for file in listing.files] == sorted(
        (path, len(data)) for path, data in FILES.items()
    )
    assert set(listing.ignored) == {"folder/", "/"}
    assert fetched(source) == FILES
    assert source.uri == f"gs://{bucket.name}/{PREFIX}"
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix in (".part", ".done")] == []


@pytest.mark.servers
def test_the_emulator_that_the_environment_names_is_asked(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put({"a": b"data"}, prefix="")
    environment = {"STORAGE_EMULATOR_HOST": bucket.server.url, "XDG_CACHE_HOME": str(tmp_path)}
    source = open_source(f"gs://{bucket.name}", environment)
    (file,) = source.list().files
    assert source.fetch(file, lambda _: None).read_bytes() == b"data"


@pytest.mark.servers
def test_the_revision_names_the_content(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    bucket.put(FILES, prefix="copy/")
    source, copy = bucket.source(tmp_path), bucket.source(tmp_path, prefix="copy")
    source.list()
    copy.list()
    assert source.revision == copy.revision
    bucket.put({"config.json": b"{}"})
    before = source.revision
    source.list()
    assert source.revision != before


@pytest.mark.servers
def test_a_stream_is_the_object_from_any_byte(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    source = bucket.source(tmp_path)
    for file in source.list().files:
        remote = source.remote(file)
        assert remote is not None
        for start in (0, file.size // 2, file.size):
            assert b"".join(remote.read(start)) == FILES[file.path][start:]


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
def test_a_replaced_object_is_never_mixed_with_the_old_one(
    bucket: GsBucket, tmp_path: Path
) -> None:
    bucket.put(FILES)
    assert fetched(bucket.source(tmp_path)) == FILES
    changed = {**FILES, "model.safetensors": b"z" * len(FILES["model.safetensors"])}
    bucket.put(changed)
    assert fetched(bucket.source(tmp_path)) == changed


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

    with FaultyS3(bucket.server.url, spoil) as proxy:
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


@pytest.mark.servers
def test_connections_that_break_off_are_continued(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    with FaultyS3(
        bucket.server.url, lambda number, answer: answer.cut_at(1000) if number % 2 else answer
    ) as proxy:
        assert fetched(bucket.source(tmp_path, endpoint=proxy.url)) == FILES


@pytest.mark.servers
def test_a_network_that_only_breaks_off_is_given_up(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    with FaultyS3(bucket.server.url, lambda _, answer: answer.cut_at(0)) as proxy:
        source = bucket.source(tmp_path, endpoint=proxy.url)
        with pytest.raises(Unreachable):
            fetched(source)
    assert fetched(bucket.source(tmp_path)) == FILES


def _status(status: int, reason: str) -> Callable[[int, Answer], Answer]:
    """An answer as the JSON API documents its errors."""
    told = {"message": "no", "domain": "global", "reason": reason}
    body = json.dumps({"error": {"code": status, "message": "no", "errors": [told]}}).encode()
    return lambda _, answer: Answer(status, body, {"Content-Type": "application/json"})


def _whole(_: int, answer: Answer) -> Answer:
    """A server that knows nothing of ranges."""
    kept = {n: v for n, v in answer.headers.items() if n.lower() != "content-range"}
    return Answer(200, answer.body * 2, kept)


FAULTS: Mapping[str, tuple[Callable[[int, Answer], Answer], type[WeightyardError]]] = {
    "too many requests": (_status(429, "rateLimitExceeded"), RateLimited),
    "an internal error": (_status(500, "internalError"), Unreachable),
    "a backend that is busy": (_status(503, "backendError"), Unreachable),
    "access taken away": (_status(403, "forbidden"), AccessDenied),
    "an expired token": (_status(401, "authError"), AccessDenied),
    "an object deleted": (_status(404, "notFound"), InvalidCheckpoint),
    "an object cut short": (_status(416, "requestedRangeNotSatisfiable"), InvalidCheckpoint),
    "a bucket whose reader pays": (_status(400, "required"), RemoteRefused),
    "ranges ignored": (_whole, RemoteRefused),
}


@pytest.mark.servers
@pytest.mark.parametrize("name", FAULTS)
def test_no_error_of_google_leaks(bucket: GsBucket, tmp_path: Path, name: str) -> None:
    bucket.put({"a": b"data"})
    fault, expected = FAULTS[name]
    with FaultyS3(bucket.server.url, fault) as proxy:
        source = bucket.source(tmp_path, endpoint=proxy.url)
        files = source.list().files
        with pytest.raises(expected) as caught:
            source.fetch(files[0], lambda _: None)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is not None or name == "ranges ignored"


@pytest.mark.servers
def test_no_such_bucket_or_prefix(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put({"a": b""})
    with pytest.raises(NotFound, match="nothing below"):
        bucket.source(tmp_path, prefix="elsewhere").list()
    absent = gs_source(
        BucketReference("gs://", "no-such-bucket"), tmp_path, bucket.server.settings()
    )
    with pytest.raises(NotFound, match="no-such-bucket"):
        absent.list()
    with pytest.raises(NotFound, match="not in"):
        bucket.source(tmp_path).fetch(SourceFile("b", 0), lambda _: None)


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
    settings = GoogleStorageSettings.of({"GOOGLE_APPLICATION_CREDENTIALS": missing})
    with pytest.raises(AccessDenied, match="no credentials") as caught:
        gs_source(BucketReference("gs://", "bucket"), tmp_path, settings).list()
    assert "workload identity" in str(caught.value.hint)


def test_an_endpoint_that_makes_no_sense(tmp_path: Path) -> None:
    settings = GoogleStorageSettings(endpoint="x://", timeout=1.0, retry=0.0)
    with pytest.raises((InvalidInput, Unreachable)):
        gs_source(BucketReference("gs://", "bucket"), tmp_path, settings).list()


@pytest.mark.servers
def test_a_build_from_a_bucket_has_the_layers_of_one_from_a_directory(
    bucket: GsBucket, tmp_path: Path
) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    bucket.put({path.name: path.read_bytes() for path in checkpoint.iterdir()})
    tools = BuildTools(DigestCache(tmp_path / "d"), tmp_path / "work", Remembering())
    source, layers = bucket.source(tmp_path / "gs"), []
    for number, each in enumerate((source, LocalSource(checkpoint))):
        destination = open_destination(LayoutReference(tmp_path / f"{number}", "1"), Access())
        (record,) = build(each, destination, BuildOptions(), tools).records
        layers.append(record.layers)
        assert record.source == each.uri
        assert record.revision == each.revision
    assert layers[0] == layers[1]


@pytest.mark.servers
def test_a_fetch_that_was_stopped_goes_on(bucket: GsBucket, tmp_path: Path) -> None:
    bucket.put(FILES)

    class Stopped(Exception):
        pass

    seen = 0

    def stop_late(count: int) -> None:
        nonlocal seen
        seen += count
        if seen > 3 * PART:
            raise Stopped

    with FaultyS3(bucket.server.url, lambda _, answer: answer) as proxy:
        source = bucket.source(tmp_path, endpoint=proxy.url)
        model = next(file for file in source.list().files if file.path == "model.safetensors")
        with pytest.raises(Stopped):
            source.fetch(model, stop_late)
        before = len(proxy.gets)
        path = bucket.source(tmp_path, endpoint=proxy.url).fetch(model, lambda _: None)
        assert len(proxy.gets) - before < -(-model.size // PART)
    assert path.read_bytes() == FILES["model.safetensors"]

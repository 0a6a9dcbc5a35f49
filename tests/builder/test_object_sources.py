"""Buckets of every kind as a source: real servers, and a proxy before them that does what bad networks do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from builder.build import BuildOptions, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.interface import SourceFile
from builder.sources.local import LocalSource
from modelimage.access import Access
from modelimage.errors import (
    AccessDenied,
    InvalidCheckpoint,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.reference import LayoutReference
from tests.builder.buckets import (
    FILES,
    PART,
    PREFIX,
    Answer,
    Bucket,
    FaultyStore,
    GsBucket,
    ObjectBucket,
    fetched,
)
from tests.builder.checkpoints import single
from tests.builder.reports import Remembering

KINDS: Mapping[str, tuple[str, Callable[..., ObjectBucket]]] = {
    "s3": ("s3", Bucket), "gs": ("gcs", GsBucket),
}  # fmt: skip


def make_bucket(
    kind: str, request: pytest.FixtureRequest, unique_name: Callable[[str], str]
) -> ObjectBucket:
    """A bucket of the test's own on the server that the kind's fixture runs."""
    server, made = KINDS[kind]
    return made(request.getfixturevalue(server), unique_name("weights"))


@pytest.fixture(params=KINDS)
def bucket(request: pytest.FixtureRequest, unique_name: Callable[[str], str]) -> ObjectBucket:
    return make_bucket(request.param, request, unique_name)


def leavings(work: Path) -> list[str]:
    return sorted(path.suffix for path in work.iterdir() if path.suffix in (".part", ".done"))


class Stopped(Exception):
    """What a progress callback raises to stop a fetch in the middle."""


@pytest.mark.servers
def test_everything_below_a_prefix(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    bucket.put({"models/tiny2/other": b"", f"{PREFIX}/folder/": b"", f"{PREFIX}/": b""}, prefix="")
    source = bucket.source(tmp_path)
    listing = source.list()
    assert [(file.path, file.size) for file in listing.files] == sorted(
        (path, len(data)) for path, data in FILES.items()
    )
    assert set(listing.ignored) == {"folder/", "/"}
    assert fetched(source) == FILES
    assert source.uri == f"{bucket.scheme}{bucket.name}/{PREFIX}"
    assert leavings(tmp_path) == []


@pytest.mark.servers
def test_a_whole_bucket_of_more_than_a_page(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put({f"{number:04d}": b"" for number in range(10)}, prefix="")
    assert len(bucket.source(tmp_path, prefix="").list().files) == 10


@pytest.mark.servers
def test_the_revision_names_the_content(bucket: ObjectBucket, tmp_path: Path) -> None:
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
def test_progress_adds_up(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    source = bucket.source(tmp_path)
    for _ in range(2):
        for file in source.list().files:
            counts: list[int] = []
            source.fetch(file, counts.append)
            assert sum(counts) == file.size


@pytest.mark.servers
def test_a_stream_is_the_object_from_any_byte(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    source = bucket.source(tmp_path)
    for file in source.list().files:
        remote = source.remote(file)
        assert remote is not None
        for start in (0, file.size // 2, file.size):
            assert b"".join(remote.read(start)) == FILES[file.path][start:]


@pytest.mark.servers
def test_a_replaced_object_is_never_mixed_with_the_old_one(
    bucket: ObjectBucket, tmp_path: Path
) -> None:
    bucket.put(FILES)
    assert fetched(bucket.source(tmp_path)) == FILES
    changed = {**FILES, "model.safetensors": b"z" * len(FILES["model.safetensors"])}
    bucket.put(changed)
    assert fetched(bucket.source(tmp_path)) == changed


@pytest.mark.servers
def test_a_fetch_that_was_stopped_goes_on(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    seen = 0

    def stop_late(count: int) -> None:
        nonlocal seen
        seen += count
        if seen > 3 * PART:
            raise Stopped

    with FaultyStore(bucket.url, lambda _, answer: answer) as proxy:
        source = bucket.through(proxy, tmp_path)
        model = next(file for file in source.list().files if file.path == "model.safetensors")
        with pytest.raises(Stopped):
            source.fetch(model, stop_late)
        assert leavings(tmp_path) == [".done", ".part"]
        before = len(proxy.gets)
        again: list[int] = []
        path = bucket.through(proxy, tmp_path).fetch(model, again.append)
        assert len(proxy.gets) - before < -(-model.size // PART)
    assert path.read_bytes() == FILES["model.safetensors"]
    assert sum(again) == model.size
    assert leavings(tmp_path) == []


@pytest.mark.servers
def test_connections_that_break_off_are_continued(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    with FaultyStore(
        bucket.url, lambda number, answer: answer.cut_at(1000) if number % 2 else answer
    ) as proxy:
        assert fetched(bucket.through(proxy, tmp_path)) == FILES


@pytest.mark.servers
def test_a_network_that_only_breaks_off_is_given_up(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put(FILES)
    with FaultyStore(bucket.url, lambda _, answer: answer.cut_at(0)) as proxy:
        source = bucket.through(proxy, tmp_path)
        with pytest.raises(Unreachable):
            fetched(source)
    assert fetched(bucket.source(tmp_path)) == FILES


def _of_s3(status: int, code: str) -> Callable[[int, Answer], Answer]:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return lambda _, answer: Answer(status, body, {"Content-Type": "application/xml"})


def _of_google(status: int, reason: str) -> Callable[[int, Answer], Answer]:
    """An answer as the JSON API documents its errors."""
    told = {"message": "no", "domain": "global", "reason": reason}
    body = json.dumps({"error": {"code": status, "message": "no", "errors": [told]}}).encode()
    return lambda _, answer: Answer(status, body, {"Content-Type": "application/json"})


def _whole(_: int, answer: Answer) -> Answer:
    """A server that knows nothing of ranges."""
    kept = {n: v for n, v in answer.headers.items() if n.lower() != "content-range"}
    return Answer(200, answer.body * 2, kept)


FAULTS: Mapping[
    str, Mapping[str, tuple[Callable[[int, Answer], Answer], type[WeightyardError]]]
] = {
    "s3": {
        "throttled": (_of_s3(503, "SlowDown"), RateLimited),
        "too many requests": (_of_s3(429, "TooManyRequests"), RateLimited),
        "an internal error": (_of_s3(500, "InternalError"), Unreachable),
        "access taken away": (_of_s3(403, "AccessDenied"), AccessDenied),
        "an expired token": (_of_s3(401, "ExpiredToken"), AccessDenied),
        "an object deleted": (_of_s3(404, "NoSuchKey"), NotFound),
        "an object cut short": (_of_s3(416, "InvalidRange"), InvalidCheckpoint),
        "an archived object": (_of_s3(400, "InvalidObjectState"), RemoteRefused),
        "ranges ignored": (_whole, RemoteRefused),
    },
    "gs": {
        "too many requests": (_of_google(429, "rateLimitExceeded"), RateLimited),
        "an internal error": (_of_google(500, "internalError"), Unreachable),
        "a backend that is busy": (_of_google(503, "backendError"), Unreachable),
        "access taken away": (_of_google(403, "forbidden"), AccessDenied),
        "an expired token": (_of_google(401, "authError"), AccessDenied),
        "an object deleted": (_of_google(404, "notFound"), InvalidCheckpoint),
        "an object cut short": (_of_google(416, "requestedRangeNotSatisfiable"), InvalidCheckpoint),
        "a bucket whose reader pays": (_of_google(400, "required"), RemoteRefused),
        "ranges ignored": (_whole, RemoteRefused),
    },
}


@pytest.mark.servers
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in FAULTS for name in FAULTS[kind]]
)
def test_no_error_of_a_library_leaks(
    request: pytest.FixtureRequest,
    unique_name: Callable[[str], str],
    tmp_path: Path,
    kind: str,
    name: str,
) -> None:
    bucket = make_bucket(kind, request, unique_name)
    bucket.put({"a": b"data"})
    fault, expected = FAULTS[kind][name]
    with FaultyStore(bucket.url, fault) as proxy:
        source = bucket.through(proxy, tmp_path)
        files = source.list().files
        with pytest.raises(expected) as caught:
            source.fetch(files[0], lambda _: None)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is not None or name == "ranges ignored"


@pytest.mark.servers
def test_no_such_bucket_or_prefix(bucket: ObjectBucket, tmp_path: Path) -> None:
    bucket.put({"a": b""})
    with pytest.raises(NotFound, match="nothing below"):
        bucket.source(tmp_path, prefix="elsewhere").list()
    with pytest.raises(NotFound, match="no-such-bucket"):
        bucket.absent(tmp_path).list()
    source = bucket.source(tmp_path)
    with pytest.raises(NotFound, match="not in"):
        source.fetch(SourceFile("b", 0), lambda _: None)


@pytest.mark.servers
def test_a_build_from_a_bucket_has_the_layers_of_one_from_a_directory(
    bucket: ObjectBucket, tmp_path: Path
) -> None:
    checkpoint = single(tmp_path / "checkpoint")
    bucket.put({path.name: path.read_bytes() for path in checkpoint.iterdir()})
    tools = BuildTools(DigestCache(tmp_path / "d"), tmp_path / "work", Remembering())
    source, layers = bucket.source(tmp_path / "fetched"), []
    for number, each in enumerate((source, LocalSource(checkpoint))):
        destination = open_destination(LayoutReference(tmp_path / f"{number}", "1"), Access())
        (record,) = build(each, destination, BuildOptions(), tools).records
        layers.append(record.layers)
        assert record.source == each.uri
        assert record.revision == each.revision
    assert layers[0] == layers[1]

"""Buckets of real servers (moto, fake-gcs-server), and a proxy before them that does what bad networks do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import boto3
import urllib3

from builder.sources.gs import gs_source
from builder.sources.objects import BucketReference, ObjectSettings, ObjectSource
from builder.sources.s3 import S3Settings, s3_source
from modelimage.source_uris import GS
from modelimage.source_uris import S3 as S3_SCHEME
from tests.servers.gcs import GoogleStorageServer
from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.s3 import S3

PREFIX = "models/tiny"
PART = 1 << 16
TRANSFER = ObjectSettings(part_size=PART, pause=lambda _: None)
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": bytes(range(256)) * 1200,
    "sub/empty.txt": b"",
    "exact.safetensors": b"x" * (2 * PART),
}


class FaultyStore(LoopbackServer):
    """Passes requests on to a real store. `fault` may change the answers to GETs of objects; it gets their number."""

    def __init__(self, upstream: str, fault: Callable[[int, Answer], Answer]) -> None:
        self.upstream, self.fault = upstream, fault
        self.http = urllib3.PoolManager(retries=False)
        self.gets: list[str] = []

    class HANDLER(Handler):
        def do_GET(self) -> None:
            owner = cast("Any", self.server).owner
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            got = owner.http.request(
                "GET", owner.upstream + self.path, headers=headers, decode_content=False
            )
            kept = {n: v for n, v in got.headers.items() if n.lower() not in HOP_BY_HOP}
            answer = Answer(got.status, got.data, kept)
            if "Range" in self.headers:
                owner.gets.append(self.headers["Range"])
                answer = owner.fault(len(owner.gets), answer)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut])
            if answer.cut is not None:
                self.close_connection = True


HOP_BY_HOP = {"content-length", "transfer-encoding", "connection", "server", "date"}


class Answer:
    """What goes back to the client; with `cut`, the connection ends after so many bytes of the body."""

    def __init__(
        self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.status, self.body, self.headers, self.cut = status, body, headers, cut

    def cut_at(self, count: int) -> Answer:
        return Answer(self.status, self.body, self.headers, count)


class ObjectBucket(Protocol):
    """A bucket of the test's own on the shared server of its kind."""

    scheme: str
    name: str
    url: str

    def put(self, files: Mapping[str, bytes], prefix: str = f"{PREFIX}/") -> None:
        """Write objects."""

    def source(self, work: Path, prefix: str = PREFIX) -> ObjectSource:
        """The source of what lies below a prefix."""

    def through(self, proxy: FaultyStore, work: Path) -> ObjectSource:
        """The same by way of a proxy."""

    def absent(self, work: Path) -> ObjectSource:
        """The source of a bucket that isn't there."""


class Bucket:
    """A bucket of an S3."""

    scheme = S3_SCHEME

    def __init__(self, server: S3, name: str) -> None:
        self.server, self.name, self.url = server, name, server.url
        self.client = boto3.session.Session().client("s3", **cast("Any", server.client_options()))
        self.client.create_bucket(Bucket=name)

    def put(self, files: Mapping[str, bytes], prefix: str = f"{PREFIX}/", **options: Any) -> None:
        for path, data in files.items():
            self.client.put_object(Bucket=self.name, Key=prefix + path, Body=data, **options)

    def settings(self, **options: Any) -> S3Settings:
        return S3Settings(
            client={**self.server.client_options(), **options},
            page_size=3,
            attempts=1,
            timeout=3600.0,
        )

    def source(self, work: Path, prefix: str = PREFIX, **options: Any) -> ObjectSource:
        reference = BucketReference(S3_SCHEME, self.name, prefix)
        return s3_source(reference, work, self.settings(**options), TRANSFER)

    def through(self, proxy: FaultyStore, work: Path) -> ObjectSource:
        return self.source(work, endpoint_url=proxy.url)

    def absent(self, work: Path) -> ObjectSource:
        return s3_source(BucketReference(S3_SCHEME, "no-such-bucket"), work, self.settings())


class GsBucket:
    """A bucket of a Google Cloud Storage."""

    scheme = GS

    def __init__(self, server: GoogleStorageServer, name: str) -> None:
        self.server, self.name, self.url = server, name, server.url
        server.make_bucket(name)

    def put(self, files: Mapping[str, bytes], prefix: str = f"{PREFIX}/", **metadata: str) -> None:
        objects = {prefix + path: data for path, data in files.items()}
        self.server.put(self.name, objects, **metadata)

    def source(self, work: Path, prefix: str = PREFIX, **options: Any) -> ObjectSource:
        settings = self.server.settings(**options)
        reference = BucketReference(GS, self.name, prefix)
        return gs_source(reference, work, settings, TRANSFER, page_size=3)

    def through(self, proxy: FaultyStore, work: Path) -> ObjectSource:
        return self.source(work, endpoint=proxy.url)

    def absent(self, work: Path) -> ObjectSource:
        return gs_source(BucketReference(GS, "no-such-bucket"), work, self.server.settings())


def fetched(source: ObjectSource) -> dict[str, bytes]:
    return {
        file.path: source.fetch(file, lambda _: None).read_bytes() for file in source.list().files
    }

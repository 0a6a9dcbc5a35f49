"""Buckets of a real S3 server (moto), and a proxy before it that does what networks do at their worst."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import boto3
import urllib3

from builder.sources.objects import BucketReference, ObjectSettings, ObjectSource
from builder.sources.s3 import S3Settings, s3_source
from modelimage.source_uris import S3 as S3_SCHEME
from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.s3 import S3

PART = 1 << 16
TRANSFER = ObjectSettings(part_size=PART, pause=lambda _: None)
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": bytes(range(256)) * 1200,
    "sub/empty.txt": b"",
    "exact.safetensors": b"x" * (2 * PART),
}


class FaultyS3(LoopbackServer):
    """Passes requests on to a real S3, but for GETs of objects, where `fault` may interfere; it gets their number."""

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


class Bucket:
    """A bucket of the test's own on the shared server."""

    def __init__(self, server: S3, name: str) -> None:
        self.server, self.name = server, name
        self.client = boto3.session.Session().client("s3", **cast("Any", server.client_options()))
        self.client.create_bucket(Bucket=name)

    def put(self, files: Mapping[str, bytes], prefix: str = "models/tiny/", **options: Any) -> None:
        for path, data in files.items():
            self.client.put_object(Bucket=self.name, Key=prefix + path, Body=data, **options)

    def settings(self, **options: Any) -> S3Settings:
        return S3Settings(
            client={**self.server.client_options(), **options},
            page_size=3,
            attempts=1,
            timeout=3600.0,
        )

    def source(self, work: Path, prefix: str = "models/tiny", **options: Any) -> ObjectSource:
        reference = BucketReference(S3_SCHEME, self.name, prefix)
        return s3_source(reference, work, self.settings(**options), TRANSFER)

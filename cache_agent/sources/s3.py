"""An S3 bucket as a shared store. boto3 is imported on first use: it takes 40 MB that most nodes don't need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.sources.shared import missing
from cache_agent.sources.streams import SLICE_BYTES
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream

CLAIM_SECONDS: Final = 3600.0
# S3 allows 10,000 parts: enough for files of 625 GiB.
_PART: Final = 64 << 20
_DENIED: Final = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"})
_MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_SLOW: Final = frozenset({"SlowDown", "503", "TooManyRequests", "429", "ThrottlingException"})


class _BodyStream:
    """A boto3 response body as a stream."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readinto(self, buffer: memoryview, /) -> int:
        return int(self._body.readinto(buffer[:SLICE_BYTES]))

    def close(self) -> None:
        # Shutting the connection down ends a read pending in another thread; closing the body would wait for it.
        with suppress(AttributeError, RuntimeError, ValueError, OSError):  # it has ended
            self._body._raw_stream.shutdown()


@dataclass
class S3Bucket:
    """`s3://bucket/prefix`. `options` for boto3's client: endpoint, region, keys; unset ones by boto3's own lookup."""

    bucket: str
    prefix: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    _client: Any = None

    @property
    def name(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @contextmanager
    def open(self, digest: Digest, wanted: ByteRange) -> Iterator[BlobStream]:
        """See `SharedStore.open`."""
        # The body is read inside, so errors of reading are mapped too.
        with self._mapped(digest):
            answer = self._s3().get_object(
                Bucket=self.bucket, Key=self._key(digest), Range=wanted.header
            )
            body = answer["Body"]
            try:
                yield _BodyStream(body)
            finally:
                body.close()

    def has(self, digest: Digest, size: int) -> bool:
        """See `SharedStore.has`."""
        try:
            with self._mapped(digest):
                head = self._s3().head_object(Bucket=self.bucket, Key=self._key(digest))
        except NotFound:
            return False
        return bool(head["ContentLength"] == size)

    def claim(self, digest: Digest) -> bool:
        """See `SharedStore.claim`. Without conditional writes on the server two nodes may both write: harmless."""
        key = self._join("claims", digest.hex)
        try:
            with self._mapped(digest):
                head = self._s3().head_object(Bucket=self.bucket, Key=key)
            if self.clock() - head["LastModified"].timestamp() < CLAIM_SECONDS:
                return False
            with self._mapped(digest):
                self._s3().delete_object(Bucket=self.bucket, Key=key)
        except NotFound:
            pass
        # Conditional: of several nodes that found no claim or an expired one, one wins.
        try:
            with self._mapped(digest):
                self._s3().put_object(Bucket=self.bucket, Key=key, Body=b"", IfNoneMatch="*")
        except RemoteRefused:
            return False
        return True

    def put(self, digest: Digest, size: int, data: Iterator[memoryview]) -> None:
        """See `SharedStore.put`: a multipart upload, completed only after all bytes were verified."""
        s3, key = self._s3(), self._key(digest)
        try:
            with self._mapped(digest):
                upload = s3.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
                where = {"Bucket": self.bucket, "Key": key, "UploadId": upload}
                try:
                    parts = [
                        {
                            "PartNumber": number,
                            "ETag": s3.upload_part(**where, PartNumber=number, Body=part)["ETag"],
                        }
                        for number, part in enumerate(_parts(data), 1)
                    ]
                    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
                except BaseException:
                    # Also on cancellation: S3 keeps and bills the parts of an upload that isn't aborted.
                    s3.abort_multipart_upload(**where)
                    raise
        finally:
            # On failure too: another node then tries without waiting for the claim's expiry.
            with self._mapped(digest):
                s3.delete_object(Bucket=self.bucket, Key=self._join("claims", digest.hex))

    def _s3(self) -> Any:
        if self._client is None:
            import boto3  # noqa: PLC0415
            from botocore.config import Config  # noqa: PLC0415

            # Fails soon: the engine repeats requests itself, and may have other sources.
            config = Config(
                connect_timeout=5,
                read_timeout=30,
                max_pool_connections=32,
                retries={"max_attempts": 2, "mode": "standard"},
            )
            self._client = boto3.session.Session().client("s3", config=config, **dict(self.options))
        return self._client

    def _key(self, digest: Digest) -> str:
        return self._join("files", "sha256", digest.hex[:2], digest.hex)

    def _join(self, *parts: str) -> str:
        return "/".join(part for part in (self.prefix.strip("/"), *parts) if part)

    @contextmanager
    def _mapped(self, digest: Digest) -> Iterator[None]:
        from botocore import exceptions as boto  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            yield
        except boto.ClientError as error:
            raise self._of(error, digest) from error
        # Before their base class: a pull that retried them as an outage would wait for nothing.
        except (
            boto.NoCredentialsError,
            boto.PartialCredentialsError,
            boto.ProfileNotFound,
        ) as error:
            raise AccessDenied(
                f"no credentials for {self.name}: {error}", hint="Check its credentials."
            ) from error
        except (boto.BotoCoreError, HTTPError, OSError) as error:
            raise Unreachable(f"{self.name} doesn't answer: {error}") from error

    def _of(self, error: Any, digest: Digest) -> WeightyardError:
        # Both: a HEAD response has no body, so its code is only the HTTP status.
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        if code in _MISSING:
            return missing(self.name, digest)
        if code == "NoSuchBucket":
            return NotFound(f"no bucket {self.bucket}", hint="Check the shared tier's settings.")
        if code in _DENIED or status == "403":
            return AccessDenied(f"{self.name} denies access: {code}", hint="Check its credentials.")
        if code in _SLOW or status in _SLOW:
            return RateLimited(f"{self.name} limits the request rate")
        if status.startswith("5"):
            return Unreachable(f"{self.name} failed: {code}")
        return RemoteRefused(f"{self.name} refused: {code or status}")


def _parts(data: Iterator[memoryview]) -> Iterator[bytes]:
    """The buffers joined into parts of at least 64 MiB, except the last; one empty part for an empty file."""
    part = bytearray()
    sent = False
    for buffer in data:
        part += buffer
        if len(part) >= _PART:
            yield bytes(part)
            part, sent = bytearray(), True
    if part or not sent:
        yield bytes(part)

"""The S3 server, tried with boto3."""

from __future__ import annotations

from collections.abc import Callable

import boto3
import pytest

from tests.servers.s3 import S3

pytestmark = pytest.mark.servers


def test_an_object_comes_back_whole_and_in_ranges(
    s3: S3, unique_name: Callable[[str], str]
) -> None:
    client = boto3.client("s3", **s3.client_options())
    bucket = unique_name("bucket")
    try:
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="a/b.bin", Body=bytes(range(256)))
        part = client.get_object(Bucket=bucket, Key="a/b.bin", Range="bytes=10-19")
        with part["Body"] as body:
            assert body.read() == bytes(range(10, 20))
        listed = client.list_objects_v2(Bucket=bucket, Prefix="a/")
        assert [o["Size"] for o in listed["Contents"]] == [256]
    finally:
        client.close()

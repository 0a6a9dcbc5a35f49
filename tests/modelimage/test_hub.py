"""The Hub's addresses and the meaning of its statuses."""

from __future__ import annotations

import pytest

from modelimage import hub
from modelimage.errors import (
    AccessDenied,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)


@pytest.mark.parametrize(
    ("source", "repository"),
    [("hf://a/b", "a/b"), ("hf://a/b@main", "a/b"), ("s3://a/b", None), ("local", None)],
)
def test_the_repository_that_a_source_names(source: str, repository: str | None) -> None:
    assert hub.hub_repository(source) == repository


def test_a_revision_with_a_slash_stays_one_segment_of_the_url() -> None:
    url = hub.file_url("https://hub.test/", "a/b", "refs/pr/1", "sub/a b.json")
    assert url == "https://hub.test/a/b/resolve/refs%2Fpr%2F1/sub/a%20b.json"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, "https://own.example/hub"),
        ("", "https://own.example/hub"),
        ("https://mirror.example", "https://mirror.example"),
        ("https://mirror.example/api/hub//", "https://mirror.example/api/hub"),
        (" https://mirror.example/\n", "https://mirror.example"),
    ],
)
def test_an_endpoint_has_no_slash_at_its_end(stated: str | None, expected: str) -> None:
    environment = {} if stated is None else {"HF_ENDPOINT": stated}
    assert hub.endpoint(environment, "https://own.example/hub/") == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HF_TOKEN": "\n"}, None),
        ({"HF_TOKEN": "hf_a\r\n", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_a"),
        ({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_b"),
    ],
)
def test_a_token_is_read_as_the_hubs_own_client_reads_it(
    environment: dict[str, str], expected: str | None
) -> None:
    assert hub.token(environment) == expected


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AccessDenied), (403, AccessDenied), (404, NotFound), (418, RemoteRefused),
     (429, RateLimited), (503, RateLimited), (500, Unreachable)],
)  # fmt: skip
def test_each_status_is_one_kind_of_error(status: int, error: type[WeightyardError]) -> None:
    found = hub.refusal("'config.json' of a/b", status, 7.0)
    assert type(found) is error
    assert "'config.json' of a/b" in found.message
    if isinstance(found, RateLimited):
        assert found.retry_after == 7.0

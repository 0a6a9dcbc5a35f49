"""What the registry client decides without a network: challenges, retries, redirects, uploads, refusals."""

from __future__ import annotations

import json
from datetime import timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
)
from modelimage.registry import answers
from modelimage.registry.challenge import Challenge, parse_challenges
from modelimage.registry.exchange import Body, Request, WebOrigin
from modelimage.registry.redirect import FollowingRedirects, next_hop
from modelimage.registry.retry import (
    Backoff,
    HostPauses,
    Retrying,
    RetryPolicy,
    parse_retry_after,
)
from modelimage.registry.upload import parse_offset, upload_url, with_digest
from tests.modelimage.exchanges import NOON, Answer, ScriptedSender, VirtualTime

HOST = "https://r.example"

# Challenges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://auth.example/token", "service": "r.example",
                                  "scope": "repository:a/b:pull,push"})],
        ),
        ("Basic realm=simple", [Challenge("basic", {"realm": "simple"})]),
        ("Negotiate", [Challenge("negotiate")]),
        ("Negotiate abc==, Basic realm=\"a \\\"b\\\"\"",
         [Challenge("negotiate"), Challenge("basic", {"realm": 'a "b"'})]),
        ('BEARER REALM = "x" , Service=y', [Challenge("bearer", {"realm": "x", "service": "y"})]),
        ("", []),
        ('="x"', []),
    ],
)  # fmt: skip
def test_challenges_are_parsed(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges(header) == expected


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_breaks_the_parser(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


_words = st.from_regex(r"[a-zA-Z0-9._~-]+", fullmatch=True)


@given(
    st.lists(
        st.tuples(
            _words,
            st.dictionaries(_words.map(str.lower), st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])),
                            min_size=1, max_size=3),
        ),
        max_size=3,
    )
)  # fmt: skip
def test_challenges_are_parsed_as_they_are_written(
    offered: list[tuple[str, dict[str, str]]],
) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in offered
    )
    assert parse_challenges(header[: 16 << 10]) == [
        Challenge(scheme.lower(), parameters) for scheme, parameters in offered
    ]


# Retry


@given(st.integers(1, 12), st.floats(0, 0.999), st.none() | st.floats(0, 1000))
def test_waits_grow_are_bounded_and_end(attempt: int, jitter: float, asked: float | None) -> None:
    policy = RetryPolicy(attempts=6, base=0.5, cap=20, longest_wait=300)
    delay = policy.delay(attempt, asked, jitter)
    if attempt >= 6 or (asked or 0) > 300:
        assert delay is None
    else:
        assert delay is not None
        assert max(asked or 0, 0.25) <= delay <= max(asked or 0, 20)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        (format_datetime(NOON + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOON - timedelta(seconds=90), usegmt=True), 0.0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30.0),
        ("9" * 400, 86400.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86400.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0661", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, NOON) == expected


@given(st.text(max_size=40))
def test_no_retry_after_breaks_the_parser(value: str) -> None:
    found = parse_retry_after(value, NOON)
    assert found is None or 0 <= found <= 86400


def retrying(
    inner: ScriptedSender, time: VirtualTime, pauses: HostPauses | None = None
) -> Retrying:
    return Retrying(
        inner, pauses or HostPauses(time.clock), RetryPolicy(attempts=4), time.environment()
    )


def test_what_passes_is_tried_again() -> None:
    time = VirtualTime()
    outcomes = [Unreachable("reset"), Answer(502), Answer(200)]
    inner = ScriptedSender(lambda _, count: outcomes[count])
    assert retrying(inner, time).send(Request("GET", f"{HOST}/v2/")).status == 200
    assert time.slept == [0.25, 0.5]
    assert inner.answers[0].discarded


def test_what_stays_is_raised_after_the_last_try() -> None:
    time = VirtualTime()
    inner = ScriptedSender(lambda *_: Answer(500))
    with pytest.raises(Unreachable, match=r"r\.example failed \(500\)"):
        retrying(inner, time).send(Request("GET", f"{HOST}/v2/"))
    assert len(inner.requests) == 4


def test_each_try_waits_longer_for_a_server_that_is_slow_but_not_dead() -> None:
    """It needs five times what the first try gives it, every time."""
    slow = ScriptedSender(
        lambda request, _: Answer(200) if request.patience > 5 else Unreachable("made no progress")
    )
    policy = RetryPolicy(most_patience=8.0)
    time = VirtualTime()
    sender = Retrying(slow, HostPauses(time.clock), policy, time.environment())
    assert sender.send(Request("GET", f"{HOST}/v2/")).status == 200
    assert [request.patience for request in slow.requests] == [1, 2, 4, 8]
    assert policy.patience(100) == 8.0


@pytest.mark.parametrize("status", [200, 206, 301, 400, 401, 403, 404, 416])
def test_an_answer_is_an_answer(status: int) -> None:
    inner = ScriptedSender(lambda *_: Answer(status))
    assert retrying(inner, VirtualTime()).send(Request("GET", f"{HOST}/v2/")).status == status
    assert len(inner.requests) == 1


def test_what_must_not_be_repeated_is_not() -> None:
    inner = ScriptedSender(lambda *_: Unreachable("reset"))
    with pytest.raises(Unreachable):
        retrying(inner, VirtualTime()).send(Request("PUT", f"{HOST}/x", repeatable=False))
    assert len(inner.requests) == 1


@pytest.mark.parametrize(
    "retry_after", ["7", format_datetime(NOON + timedelta(seconds=7), usegmt=True)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_host_that_asks_for_a_pause_gets_it_from_all(status: int, retry_after: str) -> None:
    time = VirtualTime()
    pauses = HostPauses(time.clock)
    limited = ScriptedSender(
        lambda _, count: Answer(200) if count else Answer(status, {"Retry-After": retry_after})
    )
    others = ScriptedSender(lambda *_: Answer(200))
    request = Request("PATCH", f"{HOST}/x", repeatable=False)
    with pytest.raises(RateLimited) as caught:
        retrying(limited, time, pauses).send(request)
    assert caught.value.retry_after == 7
    retrying(others, time, pauses).send(Request("GET", "https://elsewhere.example/"))
    assert time.now == 0
    retrying(others, time, pauses).send(Request("GET", f"{HOST}/y"))
    assert time.now == 7


def test_a_pause_beyond_the_longest_wait_is_an_error_at_once() -> None:
    time = VirtualTime()
    inner = ScriptedSender(lambda *_: Answer(429, {"Retry-After": "86400"}))
    with pytest.raises(RateLimited):
        retrying(inner, time).send(Request("GET", f"{HOST}/x"))
    assert time.slept == []


def test_backoff_ends() -> None:
    time = VirtualTime()
    backoff = Backoff(RetryPolicy(attempts=3), time.environment())
    assert [backoff.wait(attempt) for attempt in (1, 2, 3)] == [True, True, False]


# Redirects


@pytest.mark.parametrize(
    ("location", "kept"),
    [
        ("/elsewhere", True),
        (f"{HOST}:443/elsewhere", True),
        ("https://r.example:8443/x", False),
        ("https://storage.example/x?signed", False),
        ("//storage.example/x", False),
    ],
)
def test_credentials_stay_with_their_origin(location: str, kept: bool) -> None:
    request = Request("GET", f"{HOST}/v2/", {"authorization": "Bearer t", "Range": "bytes=0-1"})
    moved = next_hop(request, 307, location)
    assert ("authorization" in moved.headers) == kept
    assert moved.headers["Range"] == "bytes=0-1"


@pytest.mark.parametrize(
    ("method", "status", "location"),
    [("GET", 307, "http://r.example/x"), ("GET", 302, "ftp://r.example/x"), ("GET", 302, "https://[x"),
     ("PUT", 302, "/x"), ("POST", 303, "/x")],
)  # fmt: skip
def test_a_redirect_that_would_lose_something_is_refused(
    method: str, status: int, location: str
) -> None:
    with pytest.raises(RemoteRefused):
        next_hop(Request(method, f"{HOST}/v2/"), status, location)


def test_an_upload_is_redirected_with_its_body() -> None:
    request = Request("PUT", f"{HOST}/x", body=Body.from_bytes(b"abc"))
    assert next_hop(request, 307, "/y").body is request.body


def test_redirects_are_followed_and_end() -> None:
    inner = ScriptedSender(
        lambda _, count: Answer(200) if count == 5 else Answer(302, {"Location": f"/{count}"})
    )
    assert FollowingRedirects(inner).send(Request("GET", f"{HOST}/")).status == 200
    endless = ScriptedSender(lambda *_: Answer(302, {"location": "/again"}))
    with pytest.raises(RemoteRefused, match="too often"):
        FollowingRedirects(endless).send(Request("GET", f"{HOST}/"))
    assert all(answer.discarded for answer in endless.answers)


# Uploads and refusals


@pytest.mark.parametrize(
    ("header", "expected"),
    [("0-0", 0), ("0-99", 100), ("bytes=0-99", 100), (None, 0), ("", 0), ("5-9", 0), ("0-x", 0)],
)
def test_the_offset_of_an_upload(header: str | None, expected: int) -> None:
    assert parse_offset(header) == expected


def test_the_urls_of_an_upload() -> None:
    digest = Digest.of(b"")
    assert with_digest("https://r/u", digest) == f"https://r/u?digest=sha256%3A{digest.hex}"
    assert with_digest("https://r/u?s=1", digest).startswith("https://r/u?s=1&digest=sha256")
    assert upload_url(f"{HOST}/v2/m/", "/v2/u?a=b") == f"{HOST}/v2/u?a=b"
    for location in ("http://r.example/u", "https://[", "ftp://x/"):
        with pytest.raises(RemoteRefused):
            upload_url(f"{HOST}/v2/m/", location)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "UNAUTHORIZED", AccessDenied),
        (403, "DENIED", AccessDenied),
        (404, "", NotFound),
        (400, "MANIFEST_BLOB_UNKNOWN", NotFound),
        (400, "DIGEST_INVALID", DigestMismatch),
        (413, "", RemoteRefused),
        (405, "UNSUPPORTED", RemoteRefused),
        (500, "", Unreachable),
        (599, "", Unreachable),
    ],
)
def test_refusals_are_told_apart(status: int, code: str, expected: type[Exception]) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "two\nlines"}]}).encode()
    error = answers.refusal(
        Answer(status, {}, body, f"{HOST}/v2/"), "blob x", WebOrigin.parse(HOST)
    )
    assert type(error) is expected
    assert error.message == "blob x: two lines"


@given(st.binary() | st.text().map(str.encode))
def test_no_error_body_breaks_the_parser(body: bytes) -> None:
    assert answers.parse_errors(body) == (frozenset(), "")


def test_an_error_without_body_says_its_status() -> None:
    here = WebOrigin.parse(HOST)
    assert answers.refusal(Answer(404, url=HOST), "tag v1", here).message == "tag v1: 404 Not Found"
    long = Answer(499, body=b"x" * 100_000, url=HOST)
    assert answers.refusal(long, "x", here).message == "x: status 499"


@pytest.mark.parametrize(
    "url", ["https://other.example/", "http://r.example/", "https://r.example:8443/"]
)
def test_another_servers_words_are_not_quoted(url: str) -> None:
    """What a redirect's target or a token server says may be meant for this process alone."""
    body = json.dumps({"errors": [{"code": "BLOB_UNKNOWN", "message": "secret"}]}).encode()
    answer = Answer(418, body=body, url=url)
    error = answers.refusal(answer, "blob x", WebOrigin.parse("https://r.example"))
    assert "secret" not in f"{error}{error.hint}"
    assert answer.discarded


# Origins


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://r.example/v2/", "https://r.example"),
        ("http://r.example:80", "http://r.example"),
        ("http://R.example:8080/x", "http://r.example:8080"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
    ],
)
def test_origins(url: str, text: str) -> None:
    assert str(WebOrigin.parse(url)) == text
    assert WebOrigin.parse(text) == WebOrigin.parse(url)


@given(st.text())
def test_what_has_no_origin_is_invalid_input(text: str) -> None:
    for url in (text, f"https://{text}"):
        try:
            WebOrigin.parse(url)
        except InvalidInput:
            continue
        assert url.lower().startswith(("http:", "https:"))

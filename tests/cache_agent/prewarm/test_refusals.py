"""What an API server's refusal means, to the agent and the controller alike."""

from __future__ import annotations

import pytest

from cache_agent.api.kube.refusals import Conflict, Gone, ServerFailed, refuse
from modelimage import errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidInput), (401, errors.AccessDenied), (403, errors.AccessDenied),
        (404, errors.NotFound), (405, errors.RemoteRefused), (409, Conflict), (410, Gone),
        (422, errors.InvalidInput), (429, errors.RateLimited), (500, ServerFailed),
        (504, ServerFailed),
    ],
)  # fmt: skip
def test_each_status_has_its_error(status: int, kind: type[errors.WeightyardError]) -> None:
    with pytest.raises(kind) as caught:
        refuse(status, '{"message": "no"}', "GET /x", role="agent", retry_after=None)
    assert type(caught.value) is kind
    assert caught.value.message == "GET /x: no"


@pytest.mark.parametrize("text", ["", "<html>", "[]", '"a"'])
def test_what_isnt_a_status_object_is_quoted(text: str) -> None:
    with pytest.raises(errors.Unreachable) as caught:
        refuse(503, text, "GET /x", role="agent", retry_after=None)
    assert caught.value.message == f"GET /x: {text}"


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), (None, None), ("soon", None)])
def test_how_long_to_wait_is_read(header: str | None, seconds: float | None) -> None:
    with pytest.raises(errors.RateLimited) as caught:
        refuse(429, "", "GET /x", role="agent", retry_after=header)
    assert caught.value.retry_after == seconds


def test_whose_role_to_look_at_is_named() -> None:
    with pytest.raises(errors.AccessDenied) as caught:
        refuse(403, "", "GET /x", role="controller", retry_after=None)
    assert caught.value.hint == "Check the controller's ClusterRole."

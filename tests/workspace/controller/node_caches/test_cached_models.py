"""What many nodes report, summed up: the counts add up, Ready means everywhere, and asking again says nothing new."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.cached_model import CachedModel, Status
from cache_agent.api.node_cache import DesiredModelStatus
from modelimage.errors import InvalidInput
from tests.workspace.controller import caches
from workspace.controller import conditions
from workspace.controller.node_caches.cached_models import (
    ModelPhase,
    invalid,
    news,
    phase_of,
    status_of,
)

Json = dict[str, Any]
LATER = "2026-02-01T00:00:00Z"


def model(*, generation: int = 2, uid: str = "u1", **spec: Any) -> CachedModel:
    document = caches.cached_model("chat", **spec)
    document["metadata"] |= {"generation": generation, "uid": uid}
    return CachedModel.parse(document)


def entry(state: str = "Ready", *, generation: int = 2, **more: Any) -> DesiredModelStatus:
    return DesiredModelStatus.model_validate(
        caches.report("chat", state, generation=generation, **more)
    )


def condition(status: Json, kind: str) -> Json:
    return next(each for each in status["conditions"] if each["type"] == kind)


def summed(entries: dict[str, DesiredModelStatus | None], **spec: Any) -> Json:
    return status_of(model(**spec), entries, before={}, now=caches.NOW)


entries = st.dictionaries(
    st.sampled_from([f"n{number}" for number in range(8)]),
    st.none() | st.builds(
        entry,
        st.sampled_from(["Pending", "Waiting", "Fetching", "Warming", "Ready", "Failed"]),
        generation=st.sampled_from([1, 2, 3]),
        bytesDone=st.integers(0, 200),
        bytesTotal=st.none() | st.just(100),
        bytesPerSecond=st.integers(0, 50),
        secondsLeft=st.none() | st.integers(0, 60),
        modelKey=st.none() | st.just("sha256:" + "a" * 64),
        uid=st.sampled_from(["", "u1", "u0"]),
        runtimeImage=st.sampled_from([None, "Pulling", "Present", "Failed", "Unsupported"]),
    ),
)  # fmt: skip
images = st.sampled_from([None, "registry.example/vllm:1"])


@given(entries, images)
def test_laws_of_the_sum(found: dict[str, DesiredModelStatus | None], image: str | None) -> None:
    spec = {"runtimeImage": image} if image else {}
    status = summed(found, **spec)
    parsed = Status.model_validate(status)
    assert parsed.nodes_desired == len(found)
    assert parsed.nodes_ready + parsed.nodes_working + parsed.nodes_failed <= len(found)
    everywhere = bool(found) and parsed.nodes_ready == len(found)
    assert (condition(status, "Ready")["status"] == "True") == everywhere
    assert (parsed.percent == 100) == everywhere
    assert (condition(status, "Degraded")["status"] == "True") == bool(parsed.nodes_failed)
    assert [each.node for each in parsed.failures] == [
        name for name, each in sorted(found.items()) if phase_of(model(**spec), each) is ModelPhase.FAILED
    ]  # fmt: skip
    assert all(each["observedGeneration"] == 2 for each in status["conditions"])
    assert all(each["message"] for each in status["conditions"])


@given(entries)
def test_asking_again_says_nothing_new(found: dict[str, DesiredModelStatus | None]) -> None:
    before = summed(found)
    again = status_of(model(), found, before=before, now=LATER)
    assert conditions.same(before, again)
    assert news(before, again) == []


def test_what_was_reported_of_an_older_spec_or_of_another_model_of_the_name_counts_for_nothing() -> (
    None
):
    assert phase_of(model(), entry(generation=1)) is ModelPhase.WAITING
    assert phase_of(model(), entry(uid="another")) is ModelPhase.WAITING
    assert phase_of(model(), entry(generation=3)) is ModelPhase.READY
    assert phase_of(model(), None) is ModelPhase.WAITING


@pytest.mark.parametrize(
    ("runtime_image", "phase"),
    [
        (None, ModelPhase.WORKING),
        ("Pulling", ModelPhase.WORKING),
        ("Present", ModelPhase.READY),
        ("Failed", ModelPhase.FAILED),
        ("Unsupported", ModelPhase.READY),
    ],
)
def test_the_servers_image_is_part_of_it_where_it_is_asked_for(
    runtime_image: str | None, phase: ModelPhase
) -> None:
    found = entry(runtimeImage=runtime_image)
    assert phase_of(model(runtimeImage="registry.example/vllm:1"), found) is phase
    assert phase_of(model(), found) is ModelPhase.READY


def test_bytes_rates_and_the_time_left_are_those_of_all_nodes() -> None:
    status = summed(
        {
            "a": entry(bytesTotal=100, bytesDone=100, verifiedAt="2026-01-02T00:00:00Z"),
            "b": entry("Fetching", bytesTotal=100, bytesDone=50, bytesPerSecond=5, secondsLeft=10),
            "c": entry("Fetching", bytesTotal=100, bytesDone=20, bytesPerSecond=2, secondsLeft=40),
            "d": entry(bytesTotal=100, bytesDone=100, verifiedAt="2026-01-01T00:00:00Z"),
        }
    )
    assert status["percent"] == 67
    assert (status["bytesPerSecond"], status["secondsLeft"]) == (7, 40)
    assert (status["held"], status["verifiedAt"]) == ("2/4", "2026-01-01T00:00:00Z")
    unknown = summed({"a": entry("Fetching", secondsLeft=3), "b": entry("Pending")})
    assert "secondsLeft" not in unknown


@pytest.mark.parametrize(
    ("found", "reason", "says"),
    [
        ({}, "NoNode", "nodeSelector"),
        ({"a": entry(), "b": entry("Fetching")}, "Fetching", "1 of 2"),
        ({"a": entry("Waiting", reason="Window")}, "Waiting", "The one node doesn't hold it"),
        ({"a": entry(), "b": entry("Failed", reason="AccessDenied", message="no pull secret. Add one")},
         "AccessDenied", "b: no pull secret. Add one."),
        ({"a": entry()}, "Cached", "The one node"),
    ],
)  # fmt: skip
def test_reasons_say_what_is_missing(
    found: dict[str, DesiredModelStatus | None], reason: str, says: str
) -> None:
    ready = condition(summed(found), "Ready")
    assert ready["reason"] == reason
    assert says in ready["message"]


def test_what_the_image_is_is_what_most_nodes_found() -> None:
    one = {"modelKey": "sha256:" + "1" * 64, "image": "r/m@sha256:1", "variant": "int8"}
    two = {**one, "modelKey": "sha256:" + "2" * 64}
    status = summed({"a": entry(**one), "b": entry(**two), "c": entry(**two)})
    assert status["modelKey"] == two["modelKey"]
    assert status["variant"] == "int8"


def test_success_and_failure_are_news_once() -> None:
    fetching = summed({"a": entry("Fetching")})
    cached = status_of(model(), {"a": entry()}, before=fetching, now=LATER)
    assert [(each.type, each.reason) for each in news(fetching, cached)] == [("Normal", "Cached")]
    failed = status_of(
        model(), {"a": entry("Failed", reason="NoSpace", message="full")}, before=cached, now=LATER
    )
    (told,) = news(cached, failed)
    assert (told.type, told.reason) == ("Warning", "NoSpace")
    assert "a: full." in told.message


def test_a_document_that_cannot_be_read_keeps_what_was_known() -> None:
    before = summed({"a": entry()})
    status = invalid(3, InvalidInput("spec.tier: no", hint="Correct it."), before=before, now=LATER)
    assert status["held"] == "1/1"
    ready = condition(status, "Ready")
    assert (ready["reason"], ready["observedGeneration"]) == ("InvalidInput", 3)

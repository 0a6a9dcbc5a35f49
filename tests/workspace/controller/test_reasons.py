"""Reasons come from one closed list, and messages are whole sentences, wherever they come from."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cache_agent
import modelimage
import workspace
from modelimage.errors import WeightyardError
from tests.workspace.controller.node_caches.test_cached_models import entry, summed
from tests.workspace.controller.test_reconcile import cluster, status
from workspace.controller import conditions
from workspace.controller.reasons import Reason, reason_of, reported_reason

WORDS = {each.value for each in Reason}
SENTENCES = re.compile(r"(?:[A-Z\d\"'“]|[\w.{-]*[-./_\d:]).*[.?!]", re.DOTALL)
# Errors of programs that the controller never runs.
ELSEWHERE = {"AgentBug", "InUse", "EngineFailed", "GateFailed", "MissingExtra", "VolumeConflict"}
SPECS = [
    {"replicas": 1}, {"replicas": 0}, {"scale": {"min": 0, "max": 2}}, {"resources": {}},
    {"scale": {"min": 1, "max": 2, "by": "hpa"}},
    {"scale": {"min": 0, "max": 2, "by": "keda", "prometheus": "http://p"}},
    {"resources": {"gpuMemory": "2Gi"}}, {"model": {"s3": "bucket/llama"}},
    {"model": {"hub": "org/llama", "build": {"to": "registry.example/team/llama"}}},
    {"runtime": {"engine": "llama.cpp"}}, {"scale": {"min": 3, "max": 2}},
]  # fmt: skip


def check(found: list[dict[str, str]]) -> None:
    for each in found:
        assert each["reason"] in WORDS, each
        assert SENTENCES.fullmatch(each["message"]), each
        assert "\n" not in each["message"]
        assert ".." not in each["message"].replace("...", ""), each


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("nodes", [(), ("n1",), ("n1", "n2", "n3")], ids=len)
def test_every_pass_writes_known_reasons_and_whole_sentences(
    spec: dict[str, object], nodes: tuple[str, ...]
) -> None:
    made = cluster(*nodes, **spec)
    for _ in range(12):
        made.reconcile()
        check(status(made)["conditions"])
        made.step()
    made.registry_up = False
    made.change_spec(model={"image": "registry.example/team/other:v1"})
    made.settle()
    check(status(made)["conditions"])


def subclasses(kind: type[WeightyardError]) -> Iterator[type[WeightyardError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_error_that_the_controller_can_meet_has_a_reason_of_its_own() -> None:
    for package in (modelimage, workspace, cache_agent):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    ours = {
        each
        for each in subclasses(WeightyardError)
        if each.__module__.partition(".")[0] in ("modelimage", "workspace", "cache_agent")
    }
    without = {e.__name__ for e in ours if reason_of(e.__new__(e)) is Reason.FAILED}
    assert without <= ELSEWHERE


def test_every_reason_is_used() -> None:
    sources = Path(workspace.__file__).parent.rglob("*.py")
    text = "".join(each.read_text() for each in sources if each.name != "reasons.py")
    errors = {each.__name__ for each in subclasses(WeightyardError)}
    for each in Reason:
        assert f"Reason.{each.name}" in text or each.value in errors or each is Reason.FAILED, each


@given(st.text(min_size=1))
def test_an_agents_own_words_never_become_a_reason(word: str) -> None:
    assert reported_reason(word).value in WORDS
    for each in summed({"a": entry("Failed", reason=word, message="no luck")})["conditions"]:
        assert each["reason"] in WORDS


@given(st.text())
def test_text_of_any_kind_becomes_one_line_that_ends(text: str) -> None:
    found = conditions.sentence(text)
    assert found == conditions.sentence(found)
    assert found[-1] in ".?!"
    assert len(found.splitlines()) == 1
    assert len(conditions.quoted(text)) <= 402

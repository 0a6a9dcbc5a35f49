"""What is decided without IO: targets, config, documents, requests, and whether a Workspace serves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from modelimage.errors import InvalidInput, RemoteRefused
from weightyard.mlflow_deployments import verdict
from weightyard.mlflow_deployments.config import KEYS, merged, parse_config
from weightyard.mlflow_deployments.documents import (
    BUILD,
    changed_document,
    deployment_of,
    with_model,
    workspace_document,
)
from weightyard.mlflow_deployments.inputs import inference_requests, predictions
from weightyard.mlflow_deployments.model_uri import DeployedModel, repository_of
from weightyard.mlflow_deployments.target_uri import DeploymentTarget, parse_target
from weightyard.mlflow_deployments.verdict import FINAL, PATIENCE, WAITING, Judge
from workspace.controller.reasons import Reason

V1 = DeployedModel("models:/chat@champion", "mlflow:models:/chat/1", "chat", "1", "r1")


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("weightyard", DeploymentTarget()),
        ("weightyard:/team-a", DeploymentTarget(namespace="team-a")),
        ("weightyard:/local", DeploymentTarget(is_local=True)),
        ("weightyard://prod/local", DeploymentTarget(namespace="local", context="prod")),
        ("weightyard://arn%3Aaws%2Fx/a", DeploymentTarget(namespace="a", context="arn:aws/x")),
        ("weightyard://prod/", DeploymentTarget(context="prod")),
    ],
)
def test_a_target_is_written_as_it_was_read(uri: str, target: DeploymentTarget) -> None:
    assert parse_target(uri) == target
    assert str(target) == uri


@pytest.mark.parametrize(
    "uri", ["", "sagemaker:/x", "weightyard:team", "weightyard:/a/b", "weightyard:/Team", "weightyard:/a?b=c"]
)  # fmt: skip
def test_what_is_no_target_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_target(uri)
    assert "weightyard:/NAMESPACE" in str(caught.value.hint)


def test_config_is_read_from_text_and_from_values() -> None:
    told = {"replicas": "2", "variants": "int8, int4", "args": "--a 'b c'", "evaluate": "yes"}
    typed = {"replicas": 2, "variants": ["int8", "int4"], "args": ["--a", "b c"], "evaluate": True}
    assert parse_config(told) == parse_config(typed)
    assert parse_config({"gpu": ""}) == {"gpu": None}
    assert merged({"gpu": "L4", "replicas": 2}, {"gpu": None, "replicas": 3}) == {"replicas": 3}
    assert parse_config(None) == {}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"replica": "2"}, "no config key 'replica'"),
        ({"zzz": "2"}, "no config key 'zzz'"),
        ({"replicas": "two"}, "is no whole number"),
        ({"replicas": True}, "is no whole number"),
        ({"replicas": 1.5}, "is no whole number"),
        ({"timeout": "inf"}, "is no positive number"),
        ({"timeout": "soon"}, "is no number"),
        ({"evaluate": "maybe"}, "neither true nor false"),
        ({"variants": ["int8", " "]}, "is empty"),
    ],
)
def test_config_that_means_nothing_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        parse_config(config)
    assert caught.value.hint


def test_an_unknown_key_is_answered_with_the_closest() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_config({"replica": 1})
    assert caught.value.hint == "Did you mean replicas?"


def test_every_key_of_the_spec_has_a_place_of_its_own() -> None:
    places = [key.field for key in KEYS if key.field]
    assert len(set(places)) == len(places)


def test_a_workspace_is_made_and_says_what_it_was_made_from() -> None:
    values = {"registry": "r.example/t", "variants": ("int8",), "replicas": 2, "args": ("--x", "1")}
    base = {
        "model": {"hub": "org/x", "variant": "int8"},
        "scale": {"max": 3},
        "runtime": {"port": 9},
    }
    made = with_model(
        workspace_document("c", "ns", base, values), V1, "r.example/t/chat@sha", values
    )
    assert made["spec"] == {
        "model": {"variant": "int8", "image": "r.example/t/chat@sha"},
        "runtime": {"port": 9, "args": ["--x", "1"]},
        "replicas": 2,
    }
    found = deployment_of(made)
    assert found is not None
    assert (found.name, found.model, found.version, found.run) == ("c", "chat", "1", "r1")
    assert found.is_of(V1, values)
    assert not found.is_of(V1, {**values, "variants": ("int4",)})
    assert deployment_of({"metadata": {"name": "c"}, "spec": {}}) is None
    # Of what somebody else wrote there, nothing but the keys of a build counts.
    written = {"{": {}, "[]": {}, '{"plain_http": ["x"], "z": 1, "max_kl": 2}': {"max_kl": 2}}
    for text, kept in written.items():
        made["metadata"]["annotations"][BUILD] = text
        told = deployment_of(made)
        assert told is not None
        assert told.build == kept


def test_an_update_changes_what_is_given_alone() -> None:
    live = {"metadata": {"name": "c"}, "spec": {"model": {"image": "a"}, "replicas": 5, "route": {"x": 1}}}  # fmt: skip
    assert changed_document(live, None, {})["spec"] == live["spec"]
    changed = changed_document(live, None, {"gpu": "L4", "replicas": None})["spec"]
    assert changed == {"model": {"image": "a"}, "route": {"x": 1}, "resources": {"gpu": "L4"}}
    assert (
        "resources" not in changed_document({**live, "spec": changed}, None, {"gpu": None})["spec"]
    )
    other = changed_document(live, {"model": {"image": "z"}, "scale": {"max": 2}}, {})["spec"]
    assert other == {"model": {"image": "a"}, "scale": {"max": 2}}


def test_repositories_of_models_with_other_letters_stay_apart() -> None:
    assert repository_of("chat_v2.small") == "chat_v2.small"
    assert repository_of("My Chat") != repository_of("my-chat") == "my-chat"
    assert repository_of("Ü")
    assert V1.tag(()) == "v1"
    assert V1.tag(("int8", "int4")) == "v1.int8.int4"
    assert DeployedModel("runs:/r/m", "mlflow:runs:/r/m").repository == "m"


class Frame:
    """A data frame as far as it is used, with pandas' numbers and missing values."""

    class Number:
        def item(self) -> int:
            return 7

    columns = ("prompt", "max_tokens")

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"prompt": "a", "max_tokens": self.Number()}, {"prompt": "b", "max_tokens": math.nan}]  # fmt: skip


CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("inputs", "bodies"),
    [
        ("a", [{"prompt": "a"}]),
        (["a", "b"], [{"prompt": "a"}, {"prompt": "b"}]),
        ({"prompt": "a", "max_tokens": 3}, [{"prompt": "a", "max_tokens": 3}]),
        ({"messages": CHAT, "stream": True}, [{"messages": CHAT}]),
        (CHAT, [{"messages": CHAT}]),
        ([{"messages": CHAT}, {"prompt": "b"}], [{"messages": CHAT}, {"prompt": "b"}]),
        ({"inputs": ["a"], "params": {"n": 2}}, [{"prompt": "a", "n": 2}]),
        ({"dataframe_split": {"columns": ["prompt", "n"], "data": [["a", 1]]}}, [{"prompt": "a", "n": 1}]),
        ({"dataframe_records": [{"text": "a"}]}, [{"prompt": "a"}]),
        ({"input": "a"}, [{"input": "a"}]),
        (Frame(), [{"prompt": "a", "max_tokens": 7}, {"prompt": "b"}]),
    ],
)  # fmt: skip
def test_inputs_of_every_form_are_requests(inputs: Any, bodies: list[dict[str, Any]]) -> None:
    found = inference_requests(inputs, "chat")
    assert [dict(each.body) for each in found] == [{"model": "chat", **body} for body in bodies]


@pytest.mark.parametrize(
    "inputs", [None, 5, [], [[[]]], {"temperature": 1}, {"prompt": "a", "input": "b"}]
)
def test_inputs_that_ask_nothing_are_refused(inputs: Any) -> None:
    with pytest.raises(InvalidInput):
        inference_requests(inputs, "chat")


def test_answers_are_predictions() -> None:
    answers: list[dict[str, Any]] = [
        {"choices": [{"text": "a"}]},
        {"choices": [{"message": {"content": "b"}}]},
        {"data": [{"embedding": [1.0]}]},
    ]
    assert predictions(answers) == {"predictions": ["a", "b", [1.0]], "responses": answers}
    with pytest.raises(RemoteRefused):
        predictions([{"choices": []}])


def status(reason: str, *, ready: bool = False, generation: int = 2, **more: Any) -> dict[str, Any]:
    condition = {
        "type": "Ready", "status": str(ready), "reason": reason, "message": "why",
        "observedGeneration": generation,
    }  # fmt: skip
    return {"status": {"conditions": [condition], **more}}


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_is_waited_for_or_ends_the_wait(reason: Reason) -> None:
    judge = Judge(2)
    first = judge.judge(status(reason.value), 0.0)
    last = judge.judge(status(reason.value), PATIENCE)
    if reason is Reason.STOPPED:
        assert first.done
    elif reason in WAITING:
        assert (first.failed, last.failed) == (False, False)
    else:
        assert first.failed is (reason in FINAL)
        assert last.failed
    assert not FINAL & WAITING


def test_a_status_of_an_earlier_spec_says_nothing() -> None:
    judge = Judge(2)
    assert not judge.judge(status("Ready", ready=True, generation=1), 0.0).done
    assert judge.judge(status("Ready", ready=True), 1.0).done


def test_what_gets_on_is_waited_for() -> None:
    judge = Judge(2)
    crash = Reason.CRASH_LOOP.value
    assert not judge.judge(status(crash, readyReplicas=0), 0.0).failed
    assert not judge.judge(status("Starting", readyReplicas=0), PATIENCE).failed
    assert not judge.judge(status(crash, readyReplicas=1), PATIENCE + 1).failed
    assert not judge.judge(status(crash, readyReplicas=1), 2 * PATIENCE).failed
    assert judge.judge(status(crash, readyReplicas=1), 2 * PATIENCE + 1).failed


def test_a_cluster_without_a_controller_is_noticed() -> None:
    judge = Judge(1)
    assert not judge.judge({}, 0.0).failed
    last = judge.judge({}, PATIENCE)
    assert last.failed
    assert last.reason == verdict.UNSEEN

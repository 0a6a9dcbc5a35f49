"""An autoscaler of the cluster's owns the number of replicas: a HorizontalPodAutoscaler, or KEDA, also from zero."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelimage.errors import AccessDenied
from tests.examples import examples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.keda import install_keda, remove_keda
from tests.workspace.controller.living import control, make_runner
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_drain import check_replacement, cordon
from tests.workspace.controller.test_reconcile import Json, condition, deployment
from tests.workspace.controller.test_running import until
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.watches import Definition
from workspace.render import names

KEDA = {"by": "keda", "prometheus": "http://prometheus.monitoring:9090"}
HPA = {"by": "hpa"}


class ScaledCluster(Cluster):
    """A cluster whose autoscaler sets the replicas to `needed`, within its object's bounds, in each step."""

    needed = 1

    def step(self) -> None:
        for kind, least, most in (
            ("HorizontalPodAutoscaler", "minReplicas", "maxReplicas"),
            ("ScaledObject", "minReplicaCount", "maxReplicaCount"),
        ):
            for scaler in self.api.list(kind, NAMESPACE):
                spec = scaler["spec"]
                self._scale(kind, max(spec[least], min(spec[most], self.needed)))
        super().step()

    def _scale(self, kind: str, replicas: int) -> None:
        found = self.api.list("Deployment", NAMESPACE, {names.WORKSPACE: NAME})
        current = [each for each in found if each["metadata"]["name"] == NAME]
        # At 0 replicas a HorizontalPodAutoscaler pauses.
        if not current or (kind != "ScaledObject" and not current[0]["spec"]["replicas"]):
            return
        self.api.update(
            "Deployment", NAMESPACE, NAME, lambda d: d["spec"].update(replicas=replicas), manager="scaler"
        )  # fmt: skip


def scaled(*nodes: str, needed: int = 1, **scale: Any) -> ScaledCluster:
    made = ScaledCluster()
    made.needed = needed
    for name in nodes:
        made.add_node(name)
    made.create_workspace(scale={"max": 3, **scale})
    return made


def service_role(made: Cluster) -> str:
    role: str = made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"][names.ROLE]
    return role


@pytest.mark.parametrize(
    "scale",
    [{**HPA}, {**HPA, "max": 1}, {**KEDA, "min": 1}, {**KEDA, "min": 0}, {**KEDA, "min": 0, "max": 1}],
)  # fmt: skip
def test_the_only_server_goes_after_its_replacement_is_ready(scale: Json) -> None:
    made = scaled("n1", "n2", "n3", **scale)
    made.settle()
    check_replacement(made)


@pytest.mark.parametrize("scale", [HPA, {**KEDA, "min": 0}])
def test_load_that_comes_during_a_drain_gets_its_replicas(scale: Json) -> None:
    made = scaled("n1", "n2", "n3", "n4", **scale)
    made.settle()
    (old,) = made.ready_servers()
    cordon(made, old["spec"]["nodeName"])
    made.settle()
    made.needed = 3
    made.settle()
    assert deployment(made)["spec"]["replicas"] == 3
    assert len(made.ready_servers()) == 3


@given(
    scale=st.sampled_from([HPA, {**KEDA, "min": 0}, {**KEDA, "min": 1}]),
    course=st.lists(
        st.one_of(
            st.tuples(st.just("need"), st.integers(0, 4)),
            st.tuples(st.sampled_from(["cordon", "uncordon"]), st.integers(0, 2)),
            st.tuples(st.just("pass"), st.just(0)),
        ),
        max_size=8,
    ),
)
@settings(max_examples=examples(20), deadline=None)
def test_whatever_happens_the_autoscalers_number_is_reached(
    scale: Json, course: list[tuple[str, int]]
) -> None:
    """Law: at rest nobody writes any more, and the number is what the autoscaler asks for within the spec's bounds."""
    made = scaled("n0", "n1", "n2", **scale)
    for what, number in course:
        if what == "need":
            made.needed = number
        elif what != "pass":
            cordon(made, f"n{number}", out=what == "cordon")
        made.reconcile()
        made.step()
    for number in range(3):
        cordon(made, f"n{number}", out=False)
    made.settle()
    least = scale.get("min", 1)
    assert deployment(made)["spec"]["replicas"] == max(least, min(3, made.needed))
    assert len(made.ready_servers()) == max(least, min(3, made.needed))


def test_keda_goes_to_zero_and_the_activator_takes_the_requests() -> None:
    made = scaled("n1", needed=0, **KEDA, min=0)
    made.settle()
    assert made.ready_servers() == []
    assert service_role(made) == names.ACTIVATOR
    assert condition(made, "Available")["reason"] == "ScaledToZero"
    made.needed = 1
    made.settle()
    assert len(made.ready_servers()) == 1
    assert service_role(made) == names.SERVER
    made.needed = 0
    made.settle()
    assert service_role(made) == names.ACTIVATOR


def test_an_autoscaler_that_is_changed_leaves_nothing_behind() -> None:
    made = scaled("n1", **KEDA, min=0)
    made.settle()
    made.change_spec(scale={"max": 3, **HPA})
    made.settle()
    assert made.api.list("ScaledObject", NAMESPACE) == []
    assert made.api.list("Deployment", NAMESPACE, {names.ROLE: names.ACTIVATOR}) == []
    assert len(made.ready_servers()) == 1


def test_keda_comes_and_goes_while_the_controller_runs() -> None:
    async def scenario() -> None:
        made = scaled("n1", needed=0, **KEDA, min=0)

        def reason(kind: str) -> str:
            found = made.api.get("Workspace", NAMESPACE, NAME).get("status", {})
            return next((c["reason"] for c in found.get("conditions", ()) if c["type"] == kind), "")

        async with HttpApi(made.api, keda=False) as http, http.client() as client:
            working = asyncio.create_task(control(client, make_runner(KubernetesApi(client))))
            await until(made, lambda: reason("Available") == "KedaMissing")
            install_keda(made.api)
            await until(made, lambda: bool(made.api.list("ScaledObject")))
            await until(made, lambda: reason("Available") == "ScaledToZero")
            remove_keda(made.api)
            http.watches.close()
            await until(made, lambda: reason("Available") == "KedaMissing")
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(scenario())


ESTABLISHED = {"status": {"conditions": [{"type": "Established", "status": "True"}]}}


def test_a_kind_that_is_not_there_is_waited_for_and_not_asked_for() -> None:
    async def scenario() -> None:
        definition = Definition()
        for gone in (lambda: None, lambda: definition.replace([]), lambda: definition.drop({}),
                     lambda: definition.put({"status": {}})):  # fmt: skip
            gone()
            waiting = asyncio.create_task(definition.pause(0))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
            definition.put(ESTABLISHED)
            await waiting

    asyncio.run(scenario())


def test_without_the_right_to_read_definitions_the_kind_is_asked_for() -> None:
    async def scenario() -> None:
        definition = Definition()
        definition.trouble(AccessDenied("forbidden"))
        await definition.pause(0)
        definition.trouble(None)
        definition.replace([ESTABLISHED])
        await definition.pause(0)

    asyncio.run(scenario())

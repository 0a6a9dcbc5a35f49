"""A node ends within a notice: its servers stop getting requests at once, and others start in the same pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.workspace.controller.simulation import Cluster
from tests.workspace.controller.test_drain import cordon
from tests.workspace.controller.test_reconcile import cluster, deployment, prewarm_pods
from tests.workspace.controller.test_running import is_ready, prepared, running, until
from workspace.controller.observation.objects import node_of
from workspace.controller.observation.observed import Delete
from workspace.controller.servers.pod_marks import COST

Json = dict[str, Any]
ENDING = {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}


def end(made: Cluster, node: str) -> None:
    made.api.update("Node", "", node, lambda d: d["spec"].update(taints=[ENDING]))


@pytest.mark.parametrize("replicas", [1, 3])
def test_one_pass_takes_its_servers_out_and_brings_others(replicas: int) -> None:
    """Law: in the pass that sees the sign the servers go, and as many as before are asked for."""
    made = cluster(*(f"n{n}" for n in range(replicas + 1)), replicas=replicas)
    made.settle()
    (old, *_) = made.ready_servers()
    end(made, str(node_of(old)))
    decision = made.reconcile()
    deleted = [each for each in decision.actions if isinstance(each, Delete)]
    assert [each.uid for each in deleted] == [old["metadata"]["uid"]]
    assert deployment(made)["spec"]["replicas"] == replicas
    # Its node is warmed by the same pass, and it is there as soon as the Deployment's controller looks.
    assert len(prewarm_pods(made)) == 1
    made.run_deployments()
    assert len(made.servers()) == replicas
    made.settle()
    assert len(made.ready_servers()) == replicas
    assert node_of(old) not in {node_of(pod) for pod in made.servers()}


def test_a_rollout_in_progress_goes_on_elsewhere() -> None:
    made = cluster("n0", "n1", "n2", "n3", replicas=2, rollout={"strategy": "blueGreen"})
    made.settle()
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    for _ in range(6):
        made.reconcile()
        made.step()
    end(made, "n0")
    made.add_node("n4")
    made.settle()
    assert len(made.ready_servers()) >= 2
    assert "n0" not in {node_of(pod) for pod in made.servers()}


def test_the_servers_of_another_programs_objects_are_left_to_it() -> None:
    made = cluster("n0", "n1", replicas=1, rollout={"strategy": "external"})
    made.settle()
    (old,) = made.ready_servers()
    end(made, str(node_of(old)))
    decision = made.reconcile()
    assert not [each for each in decision.actions if isinstance(each, Delete)]


def live_with(change: Callable[[Cluster, str], None]) -> list[str | None]:
    """Changes the node of the only server while a real controller runs; returns the costs that its pod was given."""
    costs: list[str | None] = []

    async def scenario() -> None:
        made = prepared(replicas=1)
        async with running(made):
            await until(made, lambda: is_ready(made))
            (old,) = made.ready_servers()

            def seen(_: str, document: Json) -> None:
                if document["metadata"].get("uid") == old["metadata"]["uid"]:
                    costs.append((document["metadata"].get("annotations") or {}).get(COST))

            made.api.watchers.append(seen)
            change(made, str(node_of(old)))
            await until(
                made, lambda: [node_of(old)] != [node_of(pod) for pod in made.ready_servers()]
            )
            await until(
                made,
                lambda: (
                    is_ready(made) and [node_of(p) for p in made.servers()] == [other(node_of(old))]
                ),
            )

    asyncio.run(scenario())
    return costs


def other(node: str | None) -> str:
    return "n1" if node == "n2" else "n2"


def test_the_controller_moves_a_server_over_the_api() -> None:
    """With its own requests: the mark, the replacement, and the deletion."""
    assert "-20000" in live_with(cordon)
    assert live_with(end)

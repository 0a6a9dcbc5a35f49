"""Evictions as the API server answers them: by the one PodDisruptionBudget that selects the pod."""

from __future__ import annotations

from typing import Any

from tests.workspace.controller.fakeapi import Conflict, FakeApi
from workspace.controller.observation.objects import is_ready, pod_template
from workspace.render import groups

Json = dict[str, Any]


class TooManyBudgets(Exception):
    """A pod that two budgets select is never evicted: the server answers with 500."""


def selects(selector: Json, labels: Json) -> bool:
    """Whether a label selector, of those operators that we write, selects an object with these labels."""
    required = selector.get("matchLabels", {}).items() <= labels.items()
    return required and all(
        (labels.get(each["key"]) in each["values"])
        is {"In": True, "NotIn": False}[each["operator"]]
        for each in selector.get("matchExpressions", ())
    )


def selecting(api: FakeApi, pod: Json) -> list[Json]:
    """The specs of the budgets that select a pod."""
    return [
        each["spec"]
        for each in api.list("PodDisruptionBudget", pod["metadata"]["namespace"])
        if selects(each["spec"]["selector"], pod["metadata"]["labels"])
    ]


def evict(api: FakeApi, pod: Json) -> None:
    """Raises Conflict where that would break the budget, TooManyBudgets."""
    check_eviction(api, pod)
    api.delete("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])


def may_evict(api: FakeApi, pod: Json) -> bool:
    try:
        check_eviction(api, pod)
    except Conflict:
        return False
    return True


def check_eviction(api: FakeApi, pod: Json) -> None:
    """Raises what an eviction of the pod would."""
    namespace = pod["metadata"]["namespace"]
    budgets = selecting(api, pod)
    if len(budgets) > 1:
        raise TooManyBudgets(pod["metadata"]["name"])
    for budget in budgets:
        healthy = sum(
            is_ready(each)
            for each in api.list("Pod", namespace)
            if selects(budget["selector"], each["metadata"]["labels"])
        )
        if not _allows(budget, pod, healthy, _least(api, namespace, budget)):
            raise Conflict("Cannot evict pod as it would violate the pod's disruption budget.")


def _allows(budget: Json, pod: Json, healthy: int, least: int) -> bool:
    """As the server decides of a pod: one that never ran isn't counted, and one that isn't ready is by the policy."""
    if pod["status"].get("phase") == "Pending":
        return True
    if not is_ready(pod):
        if budget.get("unhealthyPodEvictionPolicy", "IfHealthyBudget") == "AlwaysAllow":
            return True
        if healthy >= least > 0:
            return True
    return healthy > least


def _least(api: FakeApi, namespace: str, budget: Json) -> int:
    if "minAvailable" in budget:
        return int(budget["minAvailable"])
    expected = 0
    for each in (*api.list("Deployment", namespace), *api.list(groups.KIND, namespace)):
        if selects(budget["selector"], pod_template(each)["metadata"]["labels"]):
            size = each["spec"].get("leaderWorkerTemplate", {}).get("size", 1)
            expected += size * each["spec"]["replicas"]
    return expected - int(budget["maxUnavailable"])

"""A Workspace's route in the observed cluster: whether it can be used, what Gateways say, who is behind it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.observation.objects import condition_in, has_labels, is_owned
from workspace.controller.observation.observed import GATEWAY_GROUP, POOL_GROUP, Observed
from workspace.controller.reasons import Reason
from workspace.render.http_route import written_weight
from workspace.rollout_spec import Strategy
from workspace.rollout_status import ParentReport, RouteStatus
from workspace.route_spec import ParentRef, Route
from workspace.schema import Workspace

Json = dict[str, Any]


def usable_route(workspace: Workspace, observed: Observed) -> Route | None:
    """The spec's route, if the cluster has the kinds that it needs, and its name isn't taken by another's."""
    route = workspace.spec.route
    if route is None or _missing_kind(route, observed):
        return None
    found = observed.find("HTTPRoute", workspace.name)
    return route if found is None or is_owned(found, observed.uid) else None


def route_status(workspace: Workspace, observed: Observed, *, wanted: int) -> RouteStatus | None:
    """What the route has, and what Gateways say of it; None without a route."""
    route = usable_route(workspace, observed)
    if route is None:
        return None
    found = observed.find("HTTPRoute", workspace.name)
    parents = tuple(_report(each, found, observed) for each in route.parent_refs)
    written = 0 if found is None else written_weight(workspace, route, found)
    is_external = workspace.spec.rollout.strategy is Strategy.EXTERNAL
    return RouteStatus(
        wanted=written if is_external else wanted,
        written=written,
        accepted=_all_of(_all_of((each.accepted, each.resolved)) for each in parents),
        parents=parents,
    )


def settled_weight(workspace: Workspace, observed: Observed) -> int | None:
    """The new version's percent of the requests as all Gateways have accepted it; None while they haven't."""
    found = route_status(workspace, observed, wanted=0)
    return found.written if found is not None and found.accepted == "True" else None


def reachable(
    workspace: Workspace, observed: Observed, service: str, pods: Iterable[Json]
) -> list[Json]:
    """Those of some ready pods that a Service of the route has as endpoints: Gateways know no others.

    Pickers of InferencePools watch the pods themselves.
    """
    route = workspace.spec.route
    if route is not None and route.inference_pools is not None:
        return list(pods)
    slices = [
        each for each in observed.objects
        if each["kind"] == "EndpointSlice" and has_labels(each, {"kubernetes.io/service-name": service})
    ]  # fmt: skip
    known = {
        (endpoint.get("targetRef") or {}).get("name")
        for each in slices
        for endpoint in each.get("endpoints") or ()
        # Kubernetes: unknown counts as ready.
        if (endpoint.get("conditions") or {}).get("ready", True) is not False
    }
    return [pod for pod in pods if pod["metadata"]["name"] in known]


def routed_conditions(
    workspace: Workspace, observed: Observed, status: RouteStatus | None
) -> list[StatusCondition]:
    """The condition Routed: whether the Gateways take the route; none without spec.route."""
    route = workspace.spec.route
    return [] if route is None else [_routed(workspace, route, observed, status)]


def _routed(
    workspace: Workspace, route: Route, observed: Observed, status: RouteStatus | None
) -> StatusCondition:
    kind = conditions.ROUTED
    missing = _missing_kind(route, observed)
    if missing:
        return StatusCondition(
            kind, False, Reason.GATEWAY_API_MISSING,
            f"The cluster has no {missing}, so no Gateway leads to the Workspace, and its Service shares requests by "
            "the number of each version's servers. Install it, or remove spec.route.",
        )  # fmt: skip
    if status is None:
        text = f"Another's HTTPRoute has the name {workspace.name}."
        return StatusCondition(kind, False, Reason.NAME_CONFLICT, text)
    refused = next(
        (each for each in status.parents if "False" in (each.accepted, each.resolved)), None
    )
    if refused is not None:
        text = f"The Gateway {refused.name} refuses the route. {refused.message}"
        return StatusCondition(kind, False, Reason.NOT_ACCEPTED, text)
    # A weight that was written just now isn't news of the route: it was accepted before, and will be again.
    silent = [each.name for each in status.parents if not _was_accepted(each, workspace, observed)]
    if silent:
        text = f"No answer yet from the Gateway {silent[0]}: it must exist, and allow routes of this namespace."
        return StatusCondition(kind, None, Reason.ROUTE_PENDING, text)
    return StatusCondition(kind, True, Reason.ACCEPTED, "Every Gateway takes the route.")


def _missing_kind(route: Route, observed: Observed) -> str:
    """What the cluster lacks for a route; empty if nothing."""
    if GATEWAY_GROUP not in observed.groups:
        return "Gateway API (HTTPRoute of gateway.networking.k8s.io/v1)"
    if route.inference_pools is not None and POOL_GROUP not in observed.groups:
        return "InferencePool (inference.networking.k8s.io/v1)"
    return ""


def _was_accepted(each: ParentReport, workspace: Workspace, observed: Observed) -> bool:
    found = observed.find("HTTPRoute", workspace.name)
    return found is not None and any(
        _name(parent.get("parentRef") or {}, observed) == each.name
        and all(
            condition_in(parent, kind).get("status") == "True"
            for kind in ("Accepted", "ResolvedRefs")
        )
        for parent in _parents(found)
    )


def _report(ref: ParentRef, found: Json | None, observed: Observed) -> ParentReport:
    """What the controllers of one Gateway say of the route as it is now."""
    document = {"name": ref.name, "namespace": ref.namespace, "sectionName": ref.section_name}
    name = _name(document, observed)
    # Gateway API: a parent has an entry of each controller that has something to say of it.
    said = [
        each for each in _parents(found or {}) if _name(each.get("parentRef") or {}, observed) == name
    ]  # fmt: skip
    generation = int((found or {"metadata": {}})["metadata"].get("generation", 0))
    words = [
        {kind: _current(condition_in(each, kind), generation) for kind in ("Accepted", "ResolvedRefs")}
        for each in said
    ]  # fmt: skip
    messages = [
        str(condition_in(each, kind).get("message", ""))
        for each, word in zip(said, words, strict=True)
        for kind in word
        if word[kind] == "False"
    ]
    return ParentReport(
        name=name,
        accepted=_all_of(each["Accepted"] for each in words),
        resolved=_all_of(each["ResolvedRefs"] for each in words),
        message=conditions.quoted(" ".join(dict.fromkeys(messages))),
    )


def _parents(found: Json) -> Iterable[Json]:
    return (found.get("status") or {}).get("parents") or ()


def _name(ref: Json, observed: Observed) -> str:
    """A Gateway as namespace/name, and /listener."""
    # Gateway API: without a namespace a parent is in the route's own. A Gateway may answer with it filled in.
    namespace = ref.get("namespace") or observed.document["metadata"].get("namespace", "")
    section = f"/{ref['sectionName']}" if ref.get("sectionName") else ""
    return f"{namespace}/{ref.get('name', '')}{section}"


def _current(condition: Json, generation: int) -> str:
    """A condition's status, if it is about the route as it is now."""
    # Its controller hasn't handled this generation yet: the answer is to an earlier one.
    if int(condition.get("observedGeneration") or 0) < generation:
        return "Unknown"
    status = condition.get("status")
    return status if status in ("True", "False") else "Unknown"


def _all_of(words: Iterable[str]) -> str:
    found = set(words)
    if "False" in found:
        return "False"
    # No answer at all is no consent: no controller may know of the route.
    return "True" if found == {"True"} else "Unknown"

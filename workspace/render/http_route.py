"""The HTTPRoute of a Workspace, and what it routes to: one Service, or one InferencePool, for each version.

Others may add rules, filters, timeouts and backends to the route. The API server merges none of its lists, so the
document is made from the one that is there, and written only if that hasn't changed since.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from workspace.render import names
from workspace.render.kubernetes import CLIENT_PORT, service_of
from workspace.render.routing import Routing, meta
from workspace.route_spec import InferencePools, ParentRef, Route
from workspace.schema import Workspace

Json = dict[str, Any]

# A Gateway gives each backend its weight's share of the sum of a rule's weights.
_WHOLE: Final = 100


def http_route(
    workspace: Workspace, route: Route, found: Json | None, *, weight: int | None
) -> Json:
    """The route with `weight` percent for the new version, or with the weights that it has if `weight` is None.

    `found` is the one that is there, if any.
    Gateways and hostnames are the spec's. Of the rules those change that lead to the Workspace, and in them its own
    backends alone. Without such a rule one is added, for all requests.
    """
    rules = list(_rules(found))
    if not any(_is_own(workspace, route, each) for rule in rules for each in _backends(rule)):
        rules.append({"backendRefs": [_backend(route, workspace.name)]})
    metadata = meta(workspace, workspace.name)
    if found is not None:
        metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {
            "parentRefs": [_parent(each) for each in route.parent_refs],
            "hostnames": list(route.hostnames),
            "rules": [_shared(workspace, route, rule, weight) for rule in rules],
        },
    }


def written_weight(workspace: Workspace, route: Route, found: Json) -> int:
    """The percent of the Workspace's requests that a route gives the new version, by its first rule for them."""
    for rule in _rules(found):
        own = [each for each in _backends(rule) if _is_own(workspace, route, each)]
        # Gateway API: a backend without a weight has 1.
        total = sum(int(each.get("weight", 1)) for each in own)
        new = sum(int(each.get("weight", 1)) for each in own if each["name"] != workspace.name)
        if total:
            return round(_WHOLE * new / total)
    return 0


def version_services(
    workspace: Workspace, route: Route, routing: Routing, new: str | None
) -> list[Json]:
    """What the route leads to beside the Workspace's own Service; `new` is the id of the new version; None selects all.

    They always exist: a Gateway refuses a route to what doesn't, whatever its weight.
    """
    name = names.candidate(workspace.name)
    candidate = Routing(ports=routing.ports, uid=routing.uid, version=new)
    pools = route.inference_pools
    if pools is None:
        return [service_of(workspace, name, candidate)]
    return [
        _pool(workspace, workspace.name, pools, pools.endpoint_picker, routing),
        _pool(workspace, name, pools, pools.new_endpoint_picker, candidate),
    ]


def _pool(
    workspace: Workspace, name: str, pools: InferencePools, picker: str, routing: Routing
) -> Json:
    version = {} if routing.version is None else {names.REVISION: routing.version}
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": meta(workspace, name),
        "spec": {
            "selector": {
                "matchLabels": names.selector(workspace.name, names.SERVER, routing.uid) | version
            },
            "targetPorts": [{"number": routing.ports[0]}],
            "endpointPickerRef": {"name": picker, "port": {"number": pools.port}},
        },
    }


def _shared(workspace: Workspace, route: Route, rule: Json, weight: int | None) -> Json:
    """A rule that leads to the Workspace, with the weights of both versions; any other as it is."""
    backends = list(_backends(rule))
    own = [each for each in backends if _is_own(workspace, route, each)]
    # Without weights to set only a backend that is missing is added, which gets none.
    if not own or (weight is None and len(own) == 2):
        return rule
    weight = weight or 0
    known = {each["name"]: each for each in own}
    both = [
        {**known.get(name, {}), **_backend(route, name), "weight": share}
        for name, share in (
            (workspace.name, _WHOLE - weight), (names.candidate(workspace.name), weight)
        )
    ]  # fmt: skip
    others = [each for each in backends if each not in own]
    return {**rule, "backendRefs": [*both, *others]}


def _backend(route: Route, name: str) -> Json:
    if route.inference_pools is None:
        return {"name": name, "port": CLIENT_PORT}
    return {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name}


def _is_own(workspace: Workspace, route: Route, backend: Json) -> bool:
    namespace = workspace.metadata.namespace
    # Gateway API's defaults: a Service, in the route's own namespace.
    return (
        backend.get("kind", "Service") == ("Service" if route.inference_pools is None else "InferencePool")
        and backend.get("name") in (workspace.name, names.candidate(workspace.name))
        and backend.get("namespace", namespace) == namespace
    )  # fmt: skip


def _parent(each: ParentRef) -> Json:
    namespace = {"namespace": each.namespace} if each.namespace else {}
    section = {"sectionName": each.section_name} if each.section_name else {}
    return {"name": each.name, **namespace, **section}


def _rules(found: Json | None) -> Iterable[Json]:
    return ((found or {}).get("spec") or {}).get("rules") or ()


def _backends(rule: Json) -> Iterable[Json]:
    return rule.get("backendRefs") or ()

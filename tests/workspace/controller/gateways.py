"""The parts of a cluster behind an HTTPRoute: endpoints of its Services, and a Gateway that takes routes."""

from __future__ import annotations

from typing import Any

from tests.workspace.controller.fakeapi import FakeApi
from workspace.controller.observation.objects import has_labels, is_ready
from workspace.render import names

Json = dict[str, Any]

SERVICE_NAME = "kubernetes.io/service-name"
CONTROLLER = "example.com/gateways"


def run_endpoints(api: FakeApi) -> None:
    """One EndpointSlice for each Service of a route, with the pods that its selector finds now."""
    services = {
        each["metadata"]["name"]: each
        for each in api.list("Service")
        if has_labels(each, {names.ROUTED: "true"})
    }
    for each in api.list("EndpointSlice"):
        if each["metadata"]["labels"][SERVICE_NAME] not in services:
            api.delete("EndpointSlice", each["metadata"]["namespace"], each["metadata"]["name"])
    for name, service in services.items():
        space = service["metadata"]["namespace"]
        pods = api.list("Pod", space, service["spec"]["selector"])
        endpoints = [
            {
                "addresses": [(pod.get("status") or {}).get("podIP", "10.0.0.1")],
                "conditions": {"ready": is_ready(pod)},
                "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": space},
            }
            for pod in pods
        ]
        document = {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": f"{name}-1", "namespace": space,
                "labels": {**service["metadata"]["labels"], SERVICE_NAME: name},
            },
            "endpoints": endpoints,
        }  # fmt: skip
        api.apply(document, manager="endpointslice-controller")


def run_gateways(api: FakeApi, *, refusal: str = "") -> None:
    """Each Gateway says of every route, as it is now, that it takes it, or why not."""
    for route in api.list("HTTPRoute"):
        answer(api, route, refusal=refusal)


def answer(api: FakeApi, route: Json, *, refusal: str = "") -> None:
    """What all Gateways of one route say about it."""
    takes = not refusal
    generation = route["metadata"]["generation"]
    said = [
        {
            "type": kind, "status": "True" if takes else "False", "reason": kind if takes else "BackendNotFound",
            "message": refusal or "taken", "observedGeneration": generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind in ("Accepted", "ResolvedRefs")
    ]  # fmt: skip
    parents = [
        {"parentRef": ref, "controllerName": CONTROLLER, "conditions": said}
        for ref in route["spec"]["parentRefs"]
    ]
    space, name = route["metadata"]["namespace"], route["metadata"]["name"]
    api.update(
        "HTTPRoute", space, name, lambda document: document.update(status={"parents": parents}),
        manager=CONTROLLER,
    )  # fmt: skip

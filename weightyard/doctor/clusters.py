"""Gathers facts of a cluster from its API server, through kubectl. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from cache_agent.api.kube_objects import API_VERSION
from cache_agent.api.shared_names import CSI_DRIVER
from modelimage.errors import AccessDenied, NotFound, WeightyardError
from weightyard.doctor.cluster_checks import PROGRAMS, ClusterFacts, Permission
from weightyard.doctor.provisioner_checks import USES, ProvisionerFacts
from weightyard.kubectl import Kubectl

Json = dict[str, Any]
_OURS: Final = f"/apis/{API_VERSION}"
_STORAGE: Final = "/apis/storage.k8s.io/v1"
_DRA: Final = "resource.k8s.io"
_CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass(frozen=True, slots=True)
class ClusterQuery:
    """What to look up: nodes by labels, the namespace to install into, the permissions and CRDs needed."""

    selector: str
    namespace: str
    permissions: tuple[Permission, ...]
    crds: tuple[str, ...]


def ask(cluster: Kubectl, questions: ClusterQuery) -> ClusterFacts:
    """The cluster's facts. Raises Kubectl's errors when the API server is unreachable or refuses to list nodes."""
    version = cluster.get("/version")
    groups = [str(each["name"]) for each in cluster.get("/apis").get("groups", ())]
    csi_nodes = _allowed(lambda: cluster.get(f"{_STORAGE}/csinodes")) or {}
    space = _allowed(lambda: cluster.get(f"/api/v1/namespaces/{questions.namespace}"))
    return ClusterFacts(
        version=str(version.get("gitVersion", "")),
        groups=frozenset(groups),
        nodes=tuple(cluster.get(f"/api/v1/nodes?labelSelector={quote(questions.selector)}")["items"]),
        namespace=questions.namespace,
        namespace_labels=None if space is None else space["metadata"].get("labels") or {},
        denied=tuple(_denied(cluster, questions.permissions, questions.namespace)),
        driver=_allowed(lambda: cluster.get(f"{_STORAGE}/csidrivers/{CSI_DRIVER}")),
        driver_nodes=frozenset(_with_driver(csi_nodes.get("items", ()))),
        crds={name: _allowed(lambda name=name: cluster.get(f"{_CRDS}/{name}")) for name in questions.crds},  # type: ignore[misc]
        admission_policies=_has_policies(cluster),
        programs=tuple(_programs(cluster, questions.namespace)),
        caches=tuple(_all(cluster, f"{_OURS}/nodecaches", "NodeCache")),
        served=(
            *_all(cluster, f"{_OURS}/workspaces", "Workspace"),
            *_all(cluster, f"{_OURS}/cachedmodels", "CachedModel"),
        ),
        provisioners=_provisioners(cluster, frozenset(groups)),
    )  # fmt: skip


def _provisioners(cluster: Kubectl, groups: frozenset[str]) -> ProvisionerFacts:
    """What there is of those who make nodes, as far as the caller may read it."""
    kinds: dict[str, frozenset[str]] = {}
    # Only of groups that are there: each other one would cost a request, and a 404.
    for use in USES:
        for version in use.versions if use.group in groups else ():
            found = _allowed(lambda path=f"/apis/{use.group}/{version}": cluster.get(path)) or {}  # type: ignore[misc]
            kinds[f"{use.group}/{version}"] = frozenset(
                str(each["name"]) for each in found.get("resources", ())
            )

    def all_of(plural: str) -> Sequence[Json] | None:
        place = next((place for place, names in kinds.items() if plural in names), None)
        if place is None:
            return ()
        found = _allowed(lambda: cluster.get(f"/apis/{place}/{plural}"))
        return None if found is None else tuple(found.get("items", ()))

    return ProvisionerFacts(
        kinds, all_of("nodepools"), all_of("localqueues"), all_of("clusterqueues"),
        frozenset(_dra_nodes(cluster) if _DRA in groups else ()),
    )  # fmt: skip


def _dra_nodes(cluster: Kubectl) -> Iterable[str]:
    for each in _all(cluster, f"/apis/{_DRA}/v1/resourceslices", "ResourceSlice"):
        spec = each.get("spec") or {}
        # Drivers are named after their devices: gpu.nvidia.com, gpu.amd.com.
        if str(spec.get("driver", "")).startswith("gpu.") and spec.get("nodeName"):
            yield str(spec["nodeName"])


def eviction_thresholds(cluster: Kubectl, node: str) -> Mapping[str, str]:
    """The thresholds by which a node's kubelet runs; empty when it sets none, or may not be asked.

    Its files may be anywhere and be overridden by its arguments, so what kubelet itself says counts.
    """
    try:
        found = cluster.get(f"/api/v1/nodes/{quote(node)}/proxy/configz")
    except WeightyardError:
        # A kubelet that the API server can't reach is not what these thresholds are asked for.
        return {}
    given = (found.get("kubeletconfig") or {}).get("evictionHard") or {}
    return {str(name): str(value) for name, value in given.items()}


def _denied(
    cluster: Kubectl, permissions: Iterable[Permission], namespace: str
) -> Iterable[Permission]:
    """The permissions that the caller lacks, by SelfSubjectAccessReview, which every user may create."""
    for each in permissions:
        attributes = {"group": each.group, "resource": each.resource, "verb": each.verb}
        if each.namespaced:
            attributes["namespace"] = namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = cluster.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        if not answer.get("status", {}).get("allowed"):
            yield each


def _programs(cluster: Kubectl, namespace: str) -> Iterable[Json]:
    for kind in ("Deployment", "DaemonSet"):
        path = f"/apis/apps/v1/namespaces/{namespace}/{kind.lower()}s"
        yield from _all(cluster, f"{path}?labelSelector={quote(PROGRAMS)}", kind)


def _all(cluster: Kubectl, path: str, kind: str) -> Iterable[Json]:
    """All objects of a kind; none where the kind doesn't exist, or may not be listed."""
    found = _allowed(lambda: cluster.get(path)) or {}
    # Items of a list have no kind.
    return [{**each, "kind": kind} for each in found.get("items", ())]


def _has_policies(cluster: Kubectl) -> bool:
    # By what is served, not by the version: before Kubernetes 1.30 it is a feature that may be on.
    found = _allowed(lambda: cluster.get("/apis/admissionregistration.k8s.io/v1")) or {}
    return "validatingadmissionpolicies" in {e["name"] for e in found.get("resources", ())}


def _with_driver(csi_nodes: Iterable[Json]) -> Iterable[str]:
    for each in csi_nodes:
        drivers = each.get("spec", {}).get("drivers") or ()
        if CSI_DRIVER in {driver["name"] for driver in drivers}:
            yield each["metadata"]["name"]


def _allowed(call: Callable[[], Json]) -> Json | None:
    """A call's result; None when the object doesn't exist or the caller may not read it."""
    try:
        return call()
    except (NotFound, AccessDenied):
        return None

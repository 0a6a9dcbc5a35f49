"""Checks of a cluster by facts from its API server. Facts in, findings out; pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.api.shared_names import CSI_DRIVER
from weightyard.doctor.provisioner_checks import CHECKS as PROVISIONER_CHECKS
from weightyard.doctor.provisioner_checks import ProvisionerFacts, workspaces
from weightyard.doctor.result import Finding, fail, ok, warn
from workspace.controller.observation.objects import condition
from workspace.controller.reasons import Reason
from workspace.schema import Workspace

Json = dict[str, Any]
OLDEST: Final = (1, 27)
# The label of the pods, Deployments and DaemonSets of the chart.
PROGRAMS: Final = "app.kubernetes.io/name=weightyard"
_ENFORCE: Final = "pod-security.kubernetes.io/enforce"
_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915")
_OPTIONAL: Final = {
    "monitoring.coreos.com": "Prometheus operator", "keda.sh": "KEDA", "karpenter.sh": "Karpenter",
    "kueue.x-k8s.io": "Kueue", "leaderworkerset.x-k8s.io": "LeaderWorkerSet", "nvidia.com": "NVIDIA GPU Operator",
}  # fmt: skip
# The values of the chart's CSIDriver; with others, kubelet mounts volumes differently.
DRIVER_SPEC: Final[Mapping[str, object]] = {
    "attachRequired": False, "podInfoOnMount": True, "volumeLifecycleModes": ["Ephemeral"],
    "fsGroupPolicy": "None", "requiresRepublish": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Permission:
    """A permission that an installation needs, such as `create clusterroles`; in the namespace or cluster-wide."""

    verb: str
    resource: str
    group: str = ""
    namespaced: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """Facts from the API server. `nodes` are the selected ones; missing CRDs and a missing driver are None."""

    version: str
    groups: frozenset[str]
    nodes: tuple[Json, ...]
    namespace: str
    namespace_labels: Mapping[str, str] | None
    denied: tuple[Permission, ...]
    driver: Json | None
    driver_nodes: frozenset[str]
    crds: Mapping[str, Json | None]
    admission_policies: bool
    # Weightyard's own Deployments and DaemonSets, and the objects of its kinds; empty before it is installed.
    programs: tuple[Json, ...] = ()
    caches: tuple[Json, ...] = ()
    served: tuple[Json, ...] = ()
    provisioners: ProvisionerFacts = ProvisionerFacts()  # noqa: RUF009 - it is frozen


@dataclass(frozen=True, slots=True)
class Expected:
    """What this version installs: its CRDs by name; the label selector of its nodes; and its version."""

    crds: Mapping[str, Json]
    selector: str
    version: str


def check_cluster(facts: ClusterFacts, expected: Expected) -> list[Finding]:
    """All findings, in the order in which an installation would fail."""
    return [check(facts, expected) for check in CHECKS]


def version(facts: ClusterFacts, expected: Expected) -> Finding:
    numbers = re.match(r"v?(\d+)\.(\d+)", facts.version)
    # Compared as numbers: as text, 1.9 would be newer than 1.27.
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        return fail(
            "Kubernetes",
            facts.version or "unknown version",
            "Upgrade the cluster to 1.27 or newer.",
        )
    return ok("Kubernetes", facts.version)


def permissions(facts: ClusterFacts, expected: Expected) -> Finding:
    if facts.denied:
        return fail(
            "permissions",
            "you may not " + ", ".join(map(str, facts.denied)),
            "Install with an account that may.",
        )
    return ok("permissions", "all permissions for an installation")


def namespace(facts: ClusterFacts, expected: Expected) -> Finding:
    label = f"kubectl label namespace {facts.namespace} {_ENFORCE}=privileged"
    if facts.namespace_labels is None:
        return warn(
            "namespace",
            f"{facts.namespace} isn't there",
            f"kubectl create namespace {facts.namespace} && {label}",
        )
    level = facts.namespace_labels.get(_ENFORCE)
    # Both levels forbid hostPath volumes, which agents need.
    if level in ("baseline", "restricted"):
        return fail(
            "namespace",
            f"{facts.namespace} enforces {level}",
            f"Let the agents use host directories: {label} --overwrite",
        )
    if level is None:
        return warn(
            "namespace",
            f"{facts.namespace} has no pod security label",
            f"Where the cluster's default isn't privileged: {label}",
        )
    return ok("namespace", f"{facts.namespace} allows {level}")


def nodes(facts: ClusterFacts, expected: Expected) -> Finding:
    if not facts.nodes:
        return fail(
            "nodes",
            f"none has {expected.selector}",
            "Label the nodes (GPU feature discovery does), or set agent.nodeSelector and --selector.",
        )
    # The checks go from what stops an installation to what only degrades it; the first finding
    # counts.
    wrong = [_name(e) for e in facts.nodes if _label(e, "kubernetes.io/os") not in ("linux", None)]
    if wrong:
        return fail(
            "nodes",
            f"not Linux: {_few(wrong)}",
            "Select Linux nodes: agent.nodeSelector and --selector.",
        )
    troubled = [_name(e) for e in facts.nodes if _status(e, "DiskPressure") == "True"]
    if troubled:
        return warn(
            "nodes",
            f"DiskPressure on {_few(troubled)}",
            "Free space there, or give the cache a disk of its own.",
        )
    unready = [_name(e) for e in facts.nodes if _status(e, "Ready") != "True"]
    if unready:
        return warn("nodes", f"not ready: {_few(unready)}", "See kubectl describe node.")
    return ok("nodes", f"{len(facts.nodes)} selected, all ready")


def runtimes(facts: ClusterFacts, expected: Expected) -> Finding:
    """Warns about runtimes other than containerd: the mirror needs it; volumes work with any."""
    found = Counter(e["status"]["nodeInfo"]["containerRuntimeVersion"] for e in facts.nodes)
    seen = ", ".join(f"{name} on {count}" for name, count in sorted(found.items())) or "no nodes"
    if any(not name.startswith("containerd://") for name in found):
        return warn(
            "runtimes",
            seen,
            "Use CSI volumes there: the registry mirror is set up for containerd alone.",
        )
    return ok("runtimes", seen)


def gpus(facts: ClusterFacts, expected: Expected) -> Finding:
    """Counts allocatable GPUs. A device plugin makes them allocatable; feature discovery only adds labels."""
    counts = {_name(each): _gpus_of(each) for each in facts.nodes}
    without = [name for name, count in counts.items() if not count]
    total = f"{sum(counts.values())} on {len(counts) - len(without)} nodes"
    claimed = sorted(facts.provisioners.dra_nodes.intersection(without))
    if claimed:
        return warn(
            "GPUs",
            f"{total}; by DRA alone on {_few(claimed)}",
            "Servers ask for nvidia.com/gpu: install the device plugin there, or name that resource in the driver's "
            "DeviceClass (extendedResourceName, Kubernetes 1.36).",
        )
    if without:
        return warn(
            "GPUs",
            f"{total}; none allocatable on {_few(without)}",
            "Install NVIDIA GPU Operator or the device plugin; without GPUs, models are served on the CPU.",
        )
    return ok("GPUs", total)


def driver(facts: ClusterFacts, expected: Expected) -> Finding:
    if facts.driver is None:
        return ok("CSI driver", "not installed yet")
    spec = facts.driver.get("spec", {})
    other = [k for k, v in DRIVER_SPEC.items() if spec.get(k) != v]
    if other:
        # The API server lets some of these fields never change: no upgrade of the chart could correct them.
        return fail(
            "CSI driver",
            f"the CSIDriver differs in {', '.join(other)}",
            f"kubectl delete csidriver {CSI_DRIVER}, then install again.",
        )
    missing = [_name(e) for e in facts.nodes if _name(e) not in facts.driver_nodes]
    if missing:
        return warn(
            "CSI driver",
            f"not registered on {_few(missing)}",
            "See the agents' logs there: kubectl logs, container `agent`.",
        )
    return ok("CSI driver", f"registered on {len(facts.driver_nodes)} nodes")


def crds(facts: ClusterFacts, expected: Expected) -> Finding:
    present = {name: found for name, found in facts.crds.items() if found is not None}
    if not present:
        return ok("CRDs", "not installed yet")
    old = [name for name in expected.crds if not _same(present.get(name), expected.crds[name])]
    if old:
        return warn(
            "CRDs",
            f"differ from this version's: {_few(old)}",
            "Upgrade the chart; with crds.upgrade off: helm show crds CHART | kubectl apply --server-side -f -",
        )
    return ok("CRDs", f"{len(present)} match this version")


def programs(facts: ClusterFacts, expected: Expected) -> Finding:
    """Checks that Weightyard's own programs run everywhere, and in this command's version."""
    if not facts.programs:
        return ok("programs", "not installed yet")
    short = [
        f"{_name(each)} {ready} of {wanted}"
        for each in facts.programs
        for ready, wanted in [_ready_of(each)]
        if ready < wanted
    ]
    if short:
        return fail(
            "programs",
            f"ready: {_few(short)}",
            f"kubectl --namespace {facts.namespace} describe pods -l {PROGRAMS}",
        )
    others = {_label(each, "app.kubernetes.io/version") for each in facts.programs} - {
        expected.version, None,
    }  # fmt: skip
    if others:
        return warn(
            "programs",
            f"version {', '.join(sorted(map(str, others)))}, this command has {expected.version}",
            "Use the command of the installed version, or upgrade the chart.",
        )
    return ok("programs", f"{len(facts.programs)} run, version {expected.version}")


def caches(facts: ClusterFacts, expected: Expected) -> Finding:
    """Checks that every agent reports, and reports that its store is sound."""
    if not facts.caches:
        return ok("node caches", "none yet")
    wrong = [_name(each) for each in facts.caches if _status(each, "Ready") != "True"]
    if wrong:
        return fail(
            "node caches",
            f"not ready: {_few(wrong)}",
            f"kubectl describe nodecache {min(wrong)}, and see the agent's pod on that node.",
        )
    return ok("node caches", f"{len(facts.caches)} ready")


def served(facts: ClusterFacts, expected: Expected) -> Finding:
    """Checks that Workspaces and CachedModels are ready; the message of the first that isn't says why."""
    wrong = {f"{each['kind']}/{_name(each)}": each for each in facts.served if not _is_served(each)}
    if not wrong:
        return ok("models", f"{len(facts.served)} Workspaces and CachedModels ready")
    first = min(wrong)
    why = condition(wrong[first], "Ready").get("message")
    space = wrong[first]["metadata"].get("namespace")
    where = f" --namespace {space}" if space else ""
    return warn(
        "models",
        f"not ready: {_few(list(wrong))}" + (f"; {why}" if why else ""),
        f"kubectl describe{where} {first.lower()}",
    )


def admission(facts: ClusterFacts, expected: Expected) -> Finding:
    if not facts.admission_policies:
        return warn(
            "admission policies",
            "no ValidatingAdmissionPolicy (Kubernetes 1.30)",
            "Without it, an agent can write other nodes' NodeCache objects.",
        )
    return ok("admission policies", "agents can be restricted to their own node")


def extensions(facts: ClusterFacts, expected: Expected) -> Finding:
    found = [name for group, name in _OPTIONAL.items() if group in facts.groups]
    return ok("extensions", ", ".join(found) or "none; all are optional")


def _of_provisioners(
    check: Callable[[ProvisionerFacts, Sequence[Workspace]], Finding],
) -> Callable[[ClusterFacts, Expected], Finding]:
    return lambda facts, expected: check(facts.provisioners, workspaces(facts.served))


CHECKS: Final[tuple[Callable[[ClusterFacts, Expected], Finding], ...]] = (
    version, permissions, namespace, nodes, runtimes, gpus, driver, crds, admission, extensions, programs, caches,
    *map(_of_provisioners, PROVISIONER_CHECKS), served,
)  # fmt: skip


def _name(document: Json) -> str:
    return str(document["metadata"]["name"])


def _label(document: Json, name: str) -> str | None:
    found: str | None = (document["metadata"].get("labels") or {}).get(name)
    return found


def _status(document: Json, kind: str) -> str | None:
    """The status of a condition; None for an object that doesn't have it."""
    return condition(document, kind).get("status")


def _ready_of(program: Json) -> tuple[int, int]:
    """The ready pods of a Deployment or DaemonSet, and those that it should have."""
    status = program.get("status") or {}
    if program["kind"] == "DaemonSet":
        return status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
    return status.get("readyReplicas", 0), program["spec"].get("replicas", 1)


def _is_served(document: Json) -> bool:
    # Who asks for no replicas has what they asked for.
    ready = condition(document, "Ready")
    return ready.get("status") == "True" or ready.get("reason") == Reason.STOPPED


def _gpus_of(node: Json) -> int:
    # With the device plugin's strategy `mixed` each MIG profile is a resource of its own.
    allocatable = node.get("status", {}).get("allocatable") or {}
    return sum(
        int(v) for k, v in allocatable.items() if k in _GPUS or k.startswith("nvidia.com/mig-")
    )


def _same(found: Json | None, expected: Json) -> bool:
    """Whether a CRD has this version's schemas. Other fields are completed by the API server."""
    if found is None:
        return False
    return _schemas(found) == _schemas(expected)


def _schemas(definition: Json) -> dict[str, Json]:
    return {each["name"]: each.get("schema") for each in definition["spec"]["versions"]}


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more

"""The chart's release in a cluster, as an operator handles it: installed, upgraded, tested, and taken away."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.cluster import Cluster, Refused

Json = dict[str, Any]

NAME = "weightyard"
OURS = "app.kubernetes.io/name=weightyard"
CPU_VALUES = Path(__file__).with_name("cpu-values.yaml")
MINE = "cache.weightyard.dev/"
CLUSTER_WIDE = (
    "clusterroles", "clusterrolebindings", "csidrivers", "priorityclasses", "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
)  # fmt: skip
NAMESPACED = (
    "deployments,daemonsets,replicasets,pods,jobs,services,configmaps,secrets,serviceaccounts,roles,rolebindings,leases,"
    "networkpolicies,poddisruptionbudgets"
)


@dataclass(frozen=True)
class Release:
    """One release. `cluster` is in its namespace; `values` are files and `helm` the program, version 3 or 4."""

    cluster: Cluster
    kubeconfig: str
    chart: str
    previous: str
    values: tuple[str, ...] = ()
    helm: str = "helm"

    def install(self) -> None:
        """The previous release, with the values that this one gets."""
        self._make_namespace()
        self._run("install", NAME, self.previous, *self._values())
        self.wait()

    def upgrade(self, *options: str) -> None:
        self._run("upgrade", NAME, self.chart, *self._values(), *options)
        self.wait()

    def test(self) -> str:
        """What `helm test` says."""
        return self._run("test", NAME, "--logs")

    def wait(self) -> None:
        """Until its agents and controllers of the newest revision are ready."""
        self.cluster.wait(self._is_rolled_out, what="ready agents and controllers")

    def pods(self, component: str) -> list[Json]:
        """Its running pods of a component, by name."""
        selector = f"{OURS},app.kubernetes.io/component={component}"
        found = self.cluster.items("pods", "-n", self.cluster.namespace, "-l", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def agent_on(self, node: str) -> str:
        """The name of a node's agent."""
        (found,) = [p for p in self.pods("agent") if p["spec"].get("nodeName") == node]
        name: str = found["metadata"]["name"]
        return name

    def is_ready(self, pod: str) -> bool:
        found = [each for each in self.pods("agent") if each["metadata"]["name"] == pod]
        conditions = [c for each in found for c in each["status"].get("conditions", ())]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def refuses_to_go(self) -> str:
        """What helm says to an uninstall that must fail; afterwards the release can be used again."""
        try:
            self._run("uninstall", NAME)
        except Refused as refused:
            revision = len(self._run("history", NAME, "--output=yaml").split("revision:")) - 1
            self._run("rollback", NAME, str(revision))
            self.wait()
            return str(refused)
        raise AssertionError("helm uninstalled, although a pod uses a model")

    def uninstall(self) -> None:
        """The steps of docs/install.md, each of which may be repeated."""
        self.upgrade("--set", "agent.mirror.containerd=remove")
        self._run("uninstall", NAME, "--wait")
        self.cluster.wait(
            lambda: not self.pods("agent") and not self.pods("controller"), what="end of its pods"
        )

    def leftovers(self) -> list[str]:
        """Everything of Weightyard's that the cluster still has, as kind/name."""
        found = self.cluster.items(NAMESPACED, "-n", self.cluster.namespace, "-l", OURS)
        for kind in CLUSTER_WIDE:
            found += self.cluster.items(kind, "-l", OURS)
        found += [c for c in self.cluster.items("crds") if c["spec"]["group"] == "weightyard.dev"]
        found += self.cluster.items("leases", "-n", self.cluster.namespace)
        found += [node for node in self.cluster.items("nodes") if self._marks(node)]
        return [f"{each['kind']}/{each['metadata']['name']}" for each in found]

    def _marks(self, node: Json) -> list[str]:
        """Labels, annotations and taints that were put on a node."""
        metadata = node["metadata"]
        names = [*metadata.get("labels", ()), *metadata.get("annotations", ())]
        names += [taint["key"] for taint in node["spec"].get("taints", ())]
        return [name for name in names if name.startswith(MINE)]

    def _is_rolled_out(self) -> bool:
        found = self.cluster.items(
            "deployments,daemonsets", "-n", self.cluster.namespace, "-l", OURS
        )
        return len(found) == 2 and all(map(_is_done, found))

    def _make_namespace(self) -> None:
        name = self.cluster.namespace
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        document = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        }
        self.cluster.kubectl("apply", "-f", "-", given=document)

    def _values(self) -> list[str]:
        return [f"--values={each}" for each in (CPU_VALUES, *self.values)]

    def _run(self, *arguments: str) -> str:
        command = [
            self.helm,
            f"--kubeconfig={self.kubeconfig}",
            f"--namespace={self.cluster.namespace}",
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(done.stderr.strip())
        return done.stdout


def _is_done(found: Json) -> bool:
    """Whether every pod of a Deployment or DaemonSet is of its newest revision and ready."""
    status, wanted = found.get("status", {}), found["spec"].get("replicas")
    if status.get("observedGeneration", 0) < found["metadata"]["generation"]:
        return False
    if found["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        counts = [status.get(each, 0) for each in ("updatedNumberScheduled", "numberReady")]
        return bool(wanted) and counts == [wanted, wanted]
    counts = [status.get(each, 0) for each in ("replicas", "updatedReplicas", "readyReplicas")]
    return counts == [wanted] * 3

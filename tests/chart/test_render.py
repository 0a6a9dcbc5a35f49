"""What the chart renders: accepted by old and new API servers, as the snapshots say, and sound by a linter's rules."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache_agent.api.shared_names import CSI_DRIVER, STARTUP_TAINT
from cache_agent.config.settings_file import parse_config
from tests.chart.charting import CHART, containers, find, helm, pod_specs, render
from tests.chart.matrix import MATRIX
from tests.servers.httpserver import Handler, LoopbackServer
from tests.workspace.openapi import NEWEST, OLDEST, problems, schema_name
from weightyard.commands.agent import agent
from weightyard.commands.controller import controller
from workspace.render.pod import tolerations as server_tolerations
from workspace.schema import Resources

Json = dict[str, Any]
SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = os.environ.get("UPDATE_SNAPSHOTS") == "1"
# The containers that must be root, with the reason in docs/security.md; nothing else may be.
ROOT = {"prepare", "containerd", "mounter"}
PRIVILEGED = "mounter"

KUBELET = {
    kubelet + below
    for kubelet in ("/var/lib/kubelet", "/var/lib/k0s/kubelet")
    for below in ("", "/plugins/cache.weightyard.dev", "/plugins_registry", "/pods")
}

cases = pytest.mark.parametrize("case", MATRIX)


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


def masked(document: Json) -> Json:
    """A document without what is made anew each time."""
    if document["kind"] != "Secret":
        return document
    return {**document, "data": dict.fromkeys(document["data"], "made anew")}


@cases
def test_objects_are_as_the_snapshot_says(case: str) -> None:
    """UPDATE_SNAPSHOTS=1 writes them anew; what changed is then seen in the diff."""
    text = yaml.safe_dump_all(map(masked, render(MATRIX[case])), sort_keys=True, width=120)
    path = SNAPSHOTS / f"{case}.yaml"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


@cases
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_api_servers_accept_and_keep_every_field(case: str, version: str) -> None:
    for each in render(MATRIX[case], kube=version):
        if each["apiVersion"].startswith(("monitoring.coreos.com/", "weightyard.dev/")):
            continue  # CRDs: of somebody else, and our own, which have tests of their own
        assert schema_name(each, version) is not None
        assert problems(each, version) == [], f"{each['kind']}/{each['metadata']['name']}"


@cases
def test_names_are_unique_and_namespaces_set(case: str) -> None:
    objects = render(MATRIX[case])
    keys = [(e["kind"], e["metadata"].get("namespace"), e["metadata"]["name"]) for e in objects]
    assert len(keys) == len(set(keys))
    cluster_wide = {
        "CSIDriver", "ClusterRole", "ClusterRoleBinding", "PriorityClass", "CachedModel", "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    for each in objects:
        assert ("namespace" in each["metadata"]) == (each["kind"] not in cluster_wide)


@cases
def test_selectors_select_their_own_pods(case: str) -> None:
    objects = render(MATRIX[case])
    labels = [
        e["spec"]["template"]["metadata"]["labels"]
        for e in objects
        if e["kind"] in ("DaemonSet", "Deployment")
    ]
    for each in objects:
        spec = each.get("spec", {})
        wanted = spec.get("selector") if each["kind"] == "Service" else None
        if each["kind"] in ("PodDisruptionBudget", "DaemonSet", "Deployment"):
            wanted = spec["selector"]["matchLabels"]
        if each["kind"] == "NetworkPolicy":
            wanted = spec["podSelector"]["matchLabels"]
        if wanted is not None:
            assert sum(wanted.items() <= found.items() for found in labels) == 1


@cases
def test_ports_that_services_and_policies_name_exist(case: str) -> None:
    objects = render(MATRIX[case])
    named = {port["name"] for _, each in containers(objects) for port in each.get("ports", [])}
    for each in objects:
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= named
        if each["kind"] == "NetworkPolicy":
            rules = each["spec"]["ingress"]
            assert {p["port"] for rule in rules for p in rule["ports"]} <= named


# A linter's rules


@cases
def test_containers_are_confined(case: str) -> None:
    for name, each in containers(render(MATRIX[case])):
        security = each["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        if each["name"] == PRIVILEGED:
            continue
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"]["drop"] == ["ALL"], name
        assert not security.get("privileged"), name
        if each["name"] in ROOT:
            assert set(security["capabilities"].get("add", [])) <= {"CHOWN"}, name
        else:
            assert security["runAsNonRoot"] is True, name
            assert security["runAsUser"] > 0, name
            assert "add" not in security["capabilities"], name


@cases
def test_pods_share_nothing_of_the_node_but_named_directories(case: str) -> None:
    for name, spec in pod_specs(render(MATRIX[case])):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(field), name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        asks = name.startswith(("Deployment/", "Job/"))
        assert spec.get("automountServiceAccountToken", asks) == asks
        paths = {v["hostPath"]["path"] for v in spec.get("volumes", []) if "hostPath" in v}
        assert paths <= {"/var/lib/weightyard", "/etc/containerd/certs.d"} | KUBELET, name


@cases
def test_resources_are_requested_and_limited(case: str) -> None:
    for name, each in containers(render(MATRIX[case])):
        resources = each["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), name
        assert "memory" in resources["limits"], name


def test_many_agents_restart_at_a_time() -> None:
    update = find(render(), "DaemonSet")["spec"]["updateStrategy"]
    assert update["rollingUpdate"] == {"maxUnavailable": "10%"}


@cases
def test_images_are_named_exactly(case: str) -> None:
    for name, each in containers(render(MATRIX[case])):
        assert re.search(r"(@sha256:[0-9a-f]{64}|:(?!latest$)[^/:]+)$", each["image"]), name


# What particular values mean


def test_the_memory_tier_raises_the_limit_and_reaches_the_settings() -> None:
    objects = render(MATRIX["hub-and-memory"])
    first = find(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    assert first["resources"]["requests"]["memory"] == "512Mi"
    assert first["resources"]["limits"]["memory"] == f"{512 + 64 * 1024}Mi"
    settings = yaml.safe_load(find(objects, "ConfigMap", "-agent")["data"]["agent.yaml"])
    assert settings["tiers"]["memory_budget"] == "64Gi"
    assert settings["tiers"]["order"] == ["shared", "registry"]


@pytest.mark.parametrize(
    ("config", "follows"), [({}, True), ({"prewarm": {"kubernetes": False}}, False)]
)
def test_agents_follow_the_cluster_unless_they_are_told_not_to(config: Json, follows: bool) -> None:
    text = find(render({"agent": {"config": config}}), "ConfigMap", "-agent")["data"]["agent.yaml"]
    assert yaml.safe_load(text)["prewarm"]["kubernetes"] is follows


def test_a_change_of_settings_restarts_agents() -> None:
    def annotation(budget: str) -> str:
        values = {"agent": {"config": {"budget": budget}}}
        template = find(render(values), "DaemonSet")["spec"]["template"]
        return str(template["metadata"]["annotations"]["weightyard.dev/config"])

    assert annotation("70%") != annotation("60%")
    assert annotation("70%") == annotation("70%")


def test_the_mirror_is_on_the_nodes_loopback_address_alone() -> None:
    first = find(render(), "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    exposed = [port for port in first["ports"] if "hostPort" in port]
    assert [(p["hostIP"], p["hostPort"], p["name"]) for p in exposed] == [
        ("127.0.0.1", 5080, "mirror")
    ]


def test_network_policies_of_workspaces_find_agent_and_controller() -> None:
    """Workspaces' policies name pods by these labels."""
    for kind, component in (("DaemonSet", "agent"), ("Deployment", "controller")):
        labels = find(render(), kind)["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "weightyard"
        assert labels["app.kubernetes.io/component"] == component


def test_activators_run_the_controllers_image() -> None:
    (controller,) = find(render(MATRIX["private-registry"]), "Deployment")["spec"]["template"][
        "spec"
    ]["containers"]
    assert f"--image={controller['image']}" in controller["args"]


def test_defaults_render_within_a_second() -> None:
    """Processor time, which a busy machine doesn't stretch as it does the clock; the best of three."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        helm("template", "weightyard", str(CHART))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1.0


def test_only_the_mounter_sees_all_of_kubelets_directory() -> None:
    template = find(render(), "DaemonSet")["spec"]["template"]["spec"]
    for each in [*template["initContainers"], *template["containers"]]:
        mounts = {mount["name"]: mount for mount in each["volumeMounts"]}
        assert ("kubelet" in mounts) == (each["name"] == PRIVILEGED)
        propagation = {mount.get("mountPropagation") for mount in mounts.values()}
        assert ("Bidirectional" in propagation) == (each["name"] == PRIVILEGED)


def test_the_driver_is_what_kubelet_expects_of_inline_volumes() -> None:
    driver = find(render(), "CSIDriver")
    assert driver["metadata"]["name"] == CSI_DRIVER
    assert driver["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "volumeLifecycleModes": ["Ephemeral"],
        "fsGroupPolicy": "None",
        "requiresRepublish": False,
    }
    label = "security.openshift.io/csi-ephemeral-volume-profile"
    assert driver["metadata"]["labels"][label] == "restricted"


@cases
def test_programs_take_the_options_and_settings_that_the_chart_gives_them(case: str) -> None:
    for _, each in containers(render(MATRIX[case])):
        arguments = [a for a in each.get("args", []) if a.startswith("--") and a != "--json"]
        if each["name"] in ("agent", "controller"):
            known = {
                o
                for p in {"agent": agent, "controller": controller}[each["name"]].params
                for o in p.opts
            }
            assert {a.partition("=")[0] for a in arguments} <= known
    for each in render(MATRIX[case]):
        if each["kind"] == "ConfigMap" and "agent.yaml" in each["data"]:
            text = each["data"]["agent.yaml"]
            advertise = {"WEIGHTYARD_PEERS__ADVERTISE": "10.0.0.1:7946"}
            config = parse_config(text, advertise if "peers:" in text else {}, {})
            kubelet = (
                MATRIX[case].get("agent", {}).get("csi", {}).get("kubeletPath", "/var/lib/kubelet")
            )
            assert config.servers.csi is None or str(config.servers.csi.kubelet) == kubelet


# Networks that aren't open


def controller_of(values: Json) -> tuple[Json, Json]:
    """The controller's pod and its container."""
    spec = find(render(values), "Deployment")["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def environment(container: Json) -> Json:
    return {each["name"]: each.get("value") for each in container.get("env", ())}


def test_agents_and_controllers_use_the_proxy_and_reach_the_cluster_directly() -> None:
    values = MATRIX["behind-a-proxy"]
    expected = {
        "HTTPS_PROXY": "http://proxy.corp.example:3128",
        "NO_PROXY": "$(KUBERNETES_SERVICE_HOST),.svc,.cluster.local,.corp.example,10.0.0.0/8",
    }
    agent_pod = find(render(values), "DaemonSet")["spec"]["template"]["spec"]
    for container in (agent_pod["containers"][0], controller_of(values)[1]):
        assert expected.items() <= environment(container).items()
    assert not environment(controller_of({})[1])


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("caConfigMap", {"configMap": {"name": "corp-ca"}}),
        ("caSecret", {"secret": {"secretName": "corp-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
    ],
)  # fmt: skip
def test_agents_and_controllers_trust_another_authority(name: str, source: Json) -> None:
    objects = render({"agent": {name: "corp-ca"}, "controller": {name: "corp-ca"}})
    for kind in ("DaemonSet", "Deployment"):
        spec = find(objects, kind)["spec"]["template"]["spec"]
        assert {"name": "ca", **source} in spec["volumes"]
        container = spec["containers"][0]
        (mounted,) = [each for each in container["volumeMounts"] if each["name"] == "ca"]
        assert environment(container)["WEIGHTYARD_CA_FILE"] == f"{mounted['mountPath']}/ca.crt"


def test_the_controller_takes_arguments_and_places() -> None:
    spec, container = controller_of(MATRIX["behind-a-proxy"])
    assert {
        "--log-level=debug", "--log-format=text", "--plain-http=registry.corp.example:5000",
    } <= set(container["args"])  # fmt: skip
    assert container["args"][-1] == "--builder-image=registry.corp.example/builder:1"
    assert spec["affinity"]["nodeAffinity"]
    assert [each["topologyKey"] for each in spec["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone"
    ]


def test_the_test_needs_no_registry_unless_an_image_is_named() -> None:
    def arguments(values: Json) -> list[str]:
        return list(find(render(values), "Pod", "-test")["spec"]["containers"][0]["args"])

    assert arguments({}) == [
        "http://weightyard-agent:8081", "http://weightyard-agent:5080",
    ]  # fmt: skip
    image = "registry.corp.example/pause:3.10"
    assert arguments({"tests": {"image": image}})[2:] == [image]


def test_the_test_asks_agent_and_mirror() -> None:
    """By the script that the pod runs."""
    with AgentStandIn() as server:
        command = [sys.executable, str(CHART / "files" / "smoke.py"), server.url, server.url]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (said.returncode, said.stdout[:3]) == (0, "ok:")
        server.ready = False
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert said.returncode == 1
        assert "the disk is gone" in said.stderr


class AgentStandIn(LoopbackServer):
    """Answers `/v2/`, and `/readyz` by `ready`."""

    class HANDLER(Handler):
        def do_GET(self) -> None:
            ready = self.server.owner.ready  # type: ignore[attr-defined]
            if self.path == "/readyz" and not ready:
                self.answer(503, b"the disk is gone", {})
            else:
                self.answer(200 if self.path in ("/readyz", "/v2/") else 404, b"{}", {})

    def __init__(self) -> None:
        self.ready = True


def test_agents_run_wherever_servers_may() -> None:
    """On nodes of spot capacity, and on those that are kept free until the agent has fetched what is pinned."""
    resources = Resources.model_validate({"provisioning": {"capacity": {"spot": "only"}}})
    wanted = {each["key"] for each in server_tolerations(resources, gpus=1)}
    wanted |= {STARTUP_TAINT, "readiness.k8s.io/weightyard-pinned-ready"}
    found = find(render({"controller": {"nodeConditions": True}}), "DaemonSet", "-agent")
    assert wanted <= {each["key"] for each in found["spec"]["template"]["spec"]["tolerations"]}

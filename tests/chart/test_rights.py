"""Who may do what in the cluster: roles, evaluated."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import yaml

from cache_agent.api.kube.token_reviews import ACCESS_REVIEWS, TOKEN_REVIEWS
from modelimage.access import Access
from tests.chart.charting import CHART, find, helm, render
from tests.chart.matrix import MATRIX
from tests.servers.process import until
from tests.workspace.controller import caches
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.keda import install_kind
from tests.workspace.controller.living import control
from tests.workspace.controller.rbac import Right, Rights, requested_right, rights_of
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_uninstall import (
    RELEASE,
    end_controller,
    marked_cluster,
    marks,
    run,
)
from weightyard.commands.cleanup import cleanup
from weightyard.commands.rollout import Cluster as RolloutCluster
from weightyard.crds import definitions
from weightyard.kubectl import Kubectl
from workspace.controller.cluster import watches
from workspace.controller.cluster.kube_api import RESOURCES
from workspace.controller.main import ControllerOptions, run_controller
from workspace.controller.observation import node_condition
from workspace.controller.observation.observed import LWS_GROUP
from workspace.controller.process.health_server import Liveness
from workspace.render.routing import SystemSettings

Json = dict[str, Any]


def rules_of(objects: list[Json], account: str) -> list[tuple[str | None, Json]]:
    """Every rule that is bound to a ServiceAccount, with its namespace."""
    found: list[tuple[str | None, Json]] = []
    for binding in objects:
        if account not in {each["name"] for each in binding.get("subjects", ())}:
            continue
        kind, namespace = binding["roleRef"]["kind"], binding["metadata"].get("namespace")
        (role,) = [
            each for each in objects
            if (each["kind"], each["metadata"]["name"], each["metadata"].get("namespace"))
            == (kind, binding["roleRef"]["name"], namespace)
        ]  # fmt: skip
        found += [(namespace, rule) for rule in role["rules"]]
    return found


def writes(rules: list[tuple[str | None, Json]]) -> set[str]:
    """What they may change, as group/resource."""
    return {
        f"{group}/{resource}"
        for _, rule in rules
        if set(rule["verbs"]) - {"get", "list", "watch"}
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@pytest.mark.parametrize("case", MATRIX)
def test_nobody_may_do_everything(case: str) -> None:
    for each in render(MATRIX[case]):
        for rule in each.get("rules") or ():
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


def test_the_agent_writes_nothing_but_its_reports() -> None:
    rules = rules_of(render(MATRIX["wanted"]), "weightyard-agent")
    assert writes(rules) == {
        "weightyard.dev/nodecaches", "weightyard.dev/nodecaches/status", "coordination.k8s.io/leases", "/events",
    }  # fmt: skip


@pytest.mark.parametrize("account", ["weightyard-agent", "weightyard-controller"])
def test_whoever_serves_the_page_may_ask_who_reads_it_and_nobody_else(account: str) -> None:
    def rights(values: Json) -> set[Right]:
        return rights_of([rule for _, rule in rules_of(render(values), account)])

    assert rights(MATRIX["page"]) - rights({}) == {
        requested_right("POST", TOKEN_REVIEWS), requested_right("POST", ACCESS_REVIEWS),
    }  # fmt: skip


def test_the_agent_reads_only_the_secrets_that_are_named() -> None:
    def secrets(objects: list[Json]) -> list[tuple[str | None, Any, Any]]:
        rules = rules_of(objects, "weightyard-agent")
        return [
            (w, r.get("resourceNames"), r["verbs"]) for w, r in rules if "secrets" in r["resources"]
        ]

    assert secrets(render()) == []
    assert secrets(render(MATRIX["wanted"])) == [("weightyard-system", ["team"], ["get"])]  # fmt: skip


def test_the_controller_reads_no_secret_unless_a_namespace_is_named() -> None:
    def secrets(objects: list[Json]) -> list[tuple[str | None, Any, Any]]:
        rules = rules_of(objects, "weightyard-controller")
        return [
            (w, r.get("resourceNames"), r["verbs"]) for w, r in rules if "secrets" in r["resources"]
        ]

    assert secrets(render()) == []
    found = secrets(render(MATRIX["private-registry"]))
    assert found == [("team-a", ["pull"], ["get"]), ("team-b", None, ["get"])]  # fmt: skip


# The controller's role, against the code


def rights_on(kind: str, *verbs: str, part: str = "") -> set[Right]:
    resource = RESOURCES[kind]
    group = resource.api.rpartition("/")[0]
    return {(verb, group, resource.plural + part) for verb in verbs}


def controller_rights() -> set[Right]:
    rules = rules_of(render(), "weightyard-controller")
    return rights_of([rule for _, rule in rules])


def test_the_controllers_role_is_what_the_code_takes() -> None:
    """Every watched kind is read; what a Workspace becomes is written; beside those, these few."""
    expected: set[Right] = set()
    reported = {"Workspace", "CachedModel"}
    for kind in {*watches.WORKSPACES, *watches.CACHES}:
        expected |= rights_on(kind, "get", "list", "watch")
        if kind in reported:
            expected |= rights_on(kind, "patch", part="/status")
        elif kind == "Node":
            expected |= rights_on(kind, "patch")
        elif kind == "NodeCache":
            expected |= rights_on(kind, "patch", part="/status")
        elif kind == "EndpointSlice":
            continue  # the cluster's own controllers write them
        elif kind in ("ResourceQuota", "LimitRange"):
            # Written only where the operator lets Workspaces set a namespace's quota.
            expected |= rights_on(kind, "delete")
        else:
            expected |= rights_on(kind, "create", "patch", "delete")
    # When a starting server wrote the lines of its log.
    expected |= rights_on("Pod", "get", part="/log")
    # The probes file that a Workspace names.
    expected |= rights_on("ConfigMap", "get")
    # Owner references that block deletion, where the cluster checks them.
    expected |= rights_on("Workspace", "update", part="/finalizers")
    expected |= rights_on("Event", "create", "get", "list", "watch", "patch")
    expected |= rights_on("Lease", "create", "get", "list", "update")
    # Whether the cluster has the kinds that it may do without.
    expected |= rights_on("CustomResourceDefinition", "list", "watch")
    assert controller_rights() == expected


def test_a_namespaces_quota_is_written_only_where_the_operator_allows_it() -> None:
    rules = rules_of(render({"controller": {"namespaceQuotas": True}}), "weightyard-controller")
    more = rights_of([rule for _, rule in rules]) - controller_rights()
    assert more == rights_on("ResourceQuota", "create", "patch") | rights_on(
        "LimitRange", "create", "patch"
    )


def test_nodes_status_is_patched_only_where_nodes_get_a_condition() -> None:
    rules = rules_of(render({"controller": {"nodeConditions": True}}), "weightyard-controller")
    more = rights_of([rule for _, rule in rules]) - controller_rights()
    assert more == rights_on("Node", "patch", part="/status")


def test_a_controller_with_this_role_alone_is_refused_nothing() -> None:
    """It leads, serves a Workspace with an activator, reports a CachedModel and labels a node."""
    rights = Rights(controller_rights())

    async def scenario() -> None:
        cluster = Cluster()
        cluster.add_node("n1")
        for kind in watches.OPTIONAL:
            install_kind(cluster.api, kind)
        cluster.create_workspace(
            scale={"min": 0, "max": 2}, route={"parentRefs": [{"name": "public"}]}
        )
        cluster.api.create(caches.cached_model("m", nodeSelector={}))
        async with HttpApi(cluster.api, keda=False) as http, http.client() as client:
            http.callers.allows = rights
            working = asyncio.create_task(control(client))
            try:
                await until(lambda: _served(cluster), what="a served Workspace")
                cluster.api.update("Workspace", NAMESPACE, NAME, _without_scale)
                await until(
                    lambda: ("delete", "apps", "deployments") in rights.used, what="a deletion"
                )
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
            await _lead(http)

    asyncio.run(scenario())
    assert rights.refused == set()
    watched = {*watches.WORKSPACES, *watches.CACHES, "Event"}
    assert set().union(*(rights_on(kind, "list", "watch") for kind in watched)) <= rights.used
    assert rights_on("Lease", "get", "create", "update", "list") <= rights.used


def test_servers_on_several_nodes_take_this_role_and_no_more() -> None:
    """LeaderWorkerSet is installed while the controller runs; later one node has to do."""
    rights = Rights(controller_rights())

    async def scenario() -> None:
        cluster = Cluster()
        for name in ("n1", "n2", "n3"):
            cluster.add_node(name, gpus=2)
        cluster.create_workspace(resources={"gpu": "H100", "gpus": 4, "nodes": 2})

        def is_reached(reason: str, kept: str) -> bool:
            cluster.step()
            status = cluster.api.get("Workspace", NAMESPACE, NAME).get("status") or {}
            reasons = {each["reason"] for each in status.get("conditions", ())}
            return reason in reasons and (not kept or bool(cluster.api.list(kept, NAMESPACE)))

        def is_kept() -> bool:
            cluster.step()
            return bool(cluster.api.list("LeaderWorkerSet", NAMESPACE))

        async with HttpApi(cluster.api) as http, http.client() as client:
            http.callers.allows = rights
            working = asyncio.create_task(control(client))
            try:
                await until(lambda: is_reached("LeaderWorkerSetMissing", ""), what="the reason")
                install_kind(cluster.api, "LeaderWorkerSet")
                await until(lambda: is_reached("Serving", "LeaderWorkerSet"), what="a group")
                cluster.change_spec(resources={"gpu": "H100", "gpus": 2})
                await until(lambda: is_reached("Serving", "Deployment"), what="a server")
                await until(lambda: not is_kept(), what="the group's end")
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    asyncio.run(scenario())
    assert rights.refused == set()
    assert ("patch", LWS_GROUP, "leaderworkersets") in rights.used
    assert ("delete", LWS_GROUP, "leaderworkersets") in rights.used


def _served(cluster: Cluster) -> bool:
    cluster.step()
    status = cluster.api.get("CachedModel", "", "m").get("status")
    return bool(status and cluster.api.list("Deployment", NAMESPACE))


def _without_scale(document: Json) -> None:
    del document["spec"]["scale"]


async def _lead(http: HttpApi) -> None:
    """Takes the Lease and gives it back."""
    stop, led = asyncio.Event(), asyncio.Event()
    settings = SystemSettings(system_namespace="weightyard-system")
    options = ControllerOptions(
        "me", settings, Access(), http.connection(), Liveness(time.monotonic)
    )
    running = asyncio.create_task(run_controller(options, stop=stop, leading=led.set))
    await led.wait()
    stop.set()
    await running


# People's rights


def aggregated(objects: list[Json], role: str) -> set[Right]:
    """What one of the cluster's own roles takes over from the chart."""
    label = f"rbac.authorization.k8s.io/aggregate-to-{role}"
    chosen = [each for each in objects if each["metadata"].get("labels", {}).get(label) == "true"]
    return set().union(*(rights_of(each["rules"]) for each in chosen))


def test_viewers_read_editors_serve_and_admins_cache() -> None:
    view, edit, admin = (aggregated(render(), role) for role in ("view", "edit", "admin"))
    ours = ("Workspace", "CachedModel", "NodeCache")
    assert set().union(*(rights_on(kind, "get", "list", "watch") for kind in ours)) <= view
    assert {verb for verb, _, _ in view} == {"get", "list", "watch"}
    writes = ("create", "update", "patch", "delete", "deletecollection")
    scaling = rights_on("Workspace", "update", "patch", part="/scale")  # `kubectl scale`
    assert edit - view == rights_on("Workspace", *writes) | scaling
    assert rights_on("Workspace", "get", part="/scale") <= view
    assert admin - edit == rights_on("CachedModel", *writes)


class RecordingKubectl(Kubectl):
    """Keeps the rights that calls take."""

    def __init__(self) -> None:
        self.used: set[Right] = set()

    def get(self, path: str) -> Json:
        self.used.add(requested_right("GET", path.partition("?")[0]))
        return {"items": []}

    def replace(self, path: str, document: Json) -> Json:
        self.used.add(requested_right("PUT", path))
        return document


def test_viewers_may_see_rollouts_and_editors_may_undo_them() -> None:
    view, edit = (aggregated(render(), role) for role in ("view", "edit"))
    kubectl = RecordingKubectl()
    cluster = RolloutCluster(kubectl, "team")
    cluster.revisions("a")
    cluster.workspace("a")
    assert kubectl.used <= view
    cluster.replace({"metadata": {"name": "a"}})
    assert kubectl.used <= edit
    assert not kubectl.used <= view


def test_the_hook_of_upgrades_may_change_our_definitions_alone() -> None:
    objects = render()
    rules = rules_of(objects, "weightyard-crds")
    assert writes(rules) == {"apiextensions.k8s.io/customresourcedefinitions"}
    named = [rule["resourceNames"] for _, rule in rules if rule["verbs"] != ["create"]]
    assert [set(each) for each in named] == [set(definitions())]
    job = find(objects, "Job", "-crds")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["crds", "--apply"]
    assert not [each for each in render(MATRIX["wanted"]) if each["metadata"]["name"].endswith("-crds")]  # fmt: skip


def test_the_hook_of_removals_unmarks_nodes_and_stops_the_controller() -> None:
    objects = render()
    rules = rules_of(objects, "weightyard-cleanup")
    # The condition too, whatever the setting says now: it may have said otherwise.
    assert writes(rules) == {"/nodes", "/nodes/status", "apps/deployments"}
    names = {n for _, r in rules if "deployments" in r["resources"] for n in r["resourceNames"]}
    assert names == {find(objects, "Deployment")["metadata"]["name"]}
    (container,) = find(objects, "Job", "-cleanup")["spec"]["template"]["spec"]["containers"]
    options = [option for parameter in cleanup.params for option in parameter.opts]
    assert container["args"][0] == cleanup.name
    assert {each.partition("=")[0] for each in container["args"][1:]} <= set(options)
    assert "--force" not in container["args"]


def test_a_condition_of_a_time_when_it_was_on_goes_with_the_release() -> None:
    """On, then off, then uninstalled: with the role of the chart as it is rendered then."""
    served = marked_cluster()
    conditions = served.get("Node", "", "n1")["status"]["conditions"]
    assert [each["type"] for each in conditions] == [node_condition.TYPE]
    rules = rules_of(render({"controller": {"nodeConditions": False}}), "weightyard-cleanup")
    rights = Rights(rights_of([rule for _, rule in rules]))
    left = run(served, RELEASE, while_waiting=end_controller(served), allows=rights)
    assert left.nodes == ("n1", "n3")
    assert rights.refused == set()
    assert marks(served) == []


def test_hooks_leave_nothing_behind() -> None:
    for each in render():
        annotations = each["metadata"].get("annotations", {})
        if "helm.sh/hook" in annotations:
            assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"]


def test_crds_of_the_chart_are_this_versions() -> None:
    shown = [each for each in yaml.safe_load_all(helm("show", "crds", str(CHART))) if each]
    assert {each["metadata"]["name"]: each for each in shown} == definitions()

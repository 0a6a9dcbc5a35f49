"""As much of an API server as `helm template --dry-run=server` asks: versions, kinds, objects that `lookup` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.chart.charting import CHART, helm, render
from tests.servers.httpserver import Handler, LoopbackServer

Json = dict[str, Any]
NAMESPACE = "weightyard-system"


class HelmServer(LoopbackServer):
    """`objects` by path."""

    class HANDLER(Handler):
        def do_GET(self) -> None:
            found = self.server.owner.documents.get(self.path.partition("?")[0])  # type: ignore[attr-defined]
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
            body = json.dumps(status if found is None else found).encode()
            self.answer(404 if found is None else 200, body, {"Content-Type": "application/json"})

    def __init__(self) -> None:
        self.documents: dict[str, Json] = {
            "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
        }
        for each in render():
            self._know(each["apiVersion"], each["kind"], namespaced="namespace" in each["metadata"])

    def _know(self, api: str, kind: str, *, namespaced: bool) -> None:
        """Have a kind, as discovery tells."""
        group, _, version = api.rpartition("/")
        where = f"/apis/{api}" if group else f"/api/{api}"
        if where not in self.documents:
            self.documents[where] = {
                "kind": "APIResourceList",
                "groupVersion": api,
                "resources": [],
            }
            versions = [{"version": version, "groupVersion": api}]
            if group:
                self.documents["/apis"]["groups"].append({"name": group, "versions": versions})
        plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
        found = {"name": plural, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]}
        if found not in self.documents[where]["resources"]:
            self.documents[where]["resources"].append(found)

    def keep(self, document: Json) -> None:
        """Have an object, as after an installation by helm."""
        annotations = document["metadata"].setdefault("annotations", {})
        annotations["meta.helm.sh/release-name"] = "weightyard"
        annotations["meta.helm.sh/release-namespace"] = NAMESPACE
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets/{document['metadata']['name']}"
        self.documents[path] = document

    def forget(self, name: str) -> None:
        """Lose it."""
        del self.documents[f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}"]

    def upgrade(self, folder: Path) -> list[Json]:
        """What an upgrade would send."""
        cluster = {"name": "c", "cluster": {"server": self.url}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster], "contexts": [context],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }))  # fmt: skip
        text = helm(
            "template", "weightyard", str(CHART), "--namespace", NAMESPACE, "--dry-run=server", "--kubeconfig",
            str(kubeconfig), "--disable-openapi-validation",
        )  # fmt: skip
        return [each for each in yaml.safe_load_all(text) if each]

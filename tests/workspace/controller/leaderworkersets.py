"""LeaderWorkerSet's controller in the tests' cluster: groups of pods that are made, replaced and ended as one.

As kubernetes-sigs/lws does it (pkg/controllers, pkg/webhooks/pod_webhook.go): leaders of a StatefulSet, for each of
them another one of workers, both with ControllerRevisions that have the labels of their pods; a group goes with any of
its pods; a new version's group starts beside the old ones, which are then replaced in place, the highest number first.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from tests.workspace.controller.fakeapi import FakeApi
from workspace.controller.observation.objects import is_ready
from workspace.render.groups import KIND

Json = dict[str, Any]
PREFIX = "leaderworkerset.sigs.k8s.io"
NAME, GROUP, WORKER = f"{PREFIX}/name", f"{PREFIX}/group-index", f"{PREFIX}/worker-index"
VERSION = f"{PREFIX}/template-revision-hash"


def run_leader_worker_sets(api: FakeApi, namespace: str) -> None:
    """One step of the controller: at most one pod more or less for each object."""
    known = {each["metadata"]["name"]: each for each in api.list(KIND, namespace)}
    for pod in _pods(api, namespace):
        if _label(pod, NAME) not in known:
            api.delete("Pod", namespace, pod["metadata"]["name"])
    for each in known.values():
        _Groups(api, namespace, each).step()


def joined(pod: Json, pods: Iterable[Json]) -> bool:
    """Whether a leader's workers all run, without which it is never ready; true for any other pod."""
    if _label(pod, WORKER) != "0":
        return True
    mates = [each for each in pods if _place(each) == _place(pod)]
    size = int(pod["metadata"]["annotations"][f"{PREFIX}/size"])
    return len(mates) == size and all(is_ready(each) for each in mates if each != pod)


class _Groups:
    def __init__(self, api: FakeApi, namespace: str, document: Json) -> None:
        self._api, self._namespace = api, namespace
        self._name, self._spec = document["metadata"]["name"], document["spec"]
        templates = self._spec["leaderWorkerTemplate"]
        self._size = templates["size"]
        text = json.dumps(templates, sort_keys=True).encode()
        self._version = hashlib.sha256(text).hexdigest()[:10]
        self._templates = templates
        self._own = [pod for pod in _pods(api, namespace) if _label(pod, NAME) == self._name]

    def step(self) -> None:
        self._remember_version()
        count = self._spec["replicas"]
        leaders = {int(_label(pod, GROUP)): pod for pod in self._own if _label(pod, WORKER) == "0"}
        old = [
            n for n, pod in leaders.items() if n < count and _label(pod, VERSION) != self._version
        ]
        surge = (
            self._spec["rolloutStrategy"]["rollingUpdateConfiguration"]["maxSurge"] if old else 0
        )
        surge = surge or self._unfinished(leaders, count)
        for pod in self._own:
            number = int(_label(pod, GROUP))
            leader = leaders.get(number)
            is_stray = leader is None or _label(leader, VERSION) != _label(pod, VERSION)
            if number >= count + surge or (is_stray and _label(pod, WORKER) != "0"):
                return self._delete(pod)
        for number in range(count + surge):
            if number not in leaders:
                return self._create(number, 0)
        return self._of_groups(leaders, old, count)

    def _unfinished(self, leaders: dict[int, Json], count: int) -> int:
        """The surge group stays until those that were replaced are ready."""
        late = any(n not in leaders or not is_ready(leaders[n]) for n in range(count))
        return int(late and count in leaders and count > 0)

    def _of_groups(self, leaders: dict[int, Json], old: list[int], count: int) -> None:
        for number, leader in leaders.items():
            workers = {
                int(_label(pod, WORKER)) for pod in self._own if _label(pod, GROUP) == str(number)
            }
            missing = [n for n in range(1, self._size_of(leader)) if n not in workers]
            if missing and is_ready(leader):
                return self._delete(leader)  # a group goes with any of its pods
            if missing and _label(leader, VERSION) == self._version:
                return self._create(number, missing[0])
        ready = sum(map(is_ready, leaders.values()))
        for number in sorted(old, reverse=True):
            if not is_ready(leaders[number]) or ready > count:
                return self._delete(leaders[number])
        return None

    def _size_of(self, leader: Json) -> int:
        return int(leader["metadata"]["annotations"][f"{PREFIX}/size"])

    def _create(self, group: int, worker: int) -> None:
        template = self._templates["workerTemplate" if worker else "leaderTemplate"]
        name = f"{self._name}-{group}" + (f"-{worker}" if worker else "")
        made = copy.deepcopy(template)
        labels = {
            NAME: self._name, GROUP: str(group), WORKER: str(worker), VERSION: self._version,
        }  # fmt: skip
        variables = [
            {"name": "LWS_LEADER_ADDRESS", "value": f"{self._name}-{group}.{self._name}.{self._namespace}"},
            {"name": "LWS_GROUP_SIZE", "value": str(self._size)},
            {"name": "LWS_WORKER_INDEX", "value": str(worker)},
        ]  # fmt: skip
        for container in made["spec"]["containers"]:
            container["env"] = [*variables, *container.get("env", [])]
        annotations = {**made["metadata"].get("annotations", {}), f"{PREFIX}/size": str(self._size)}
        self._api.create(
            {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": name, "namespace": self._namespace, "annotations": annotations,
                    "labels": {**made["metadata"].get("labels", {}), **labels},
                },
                "spec": made["spec"],
            }
        )  # fmt: skip

    def _remember_version(self) -> None:
        """The StatefulSet's ControllerRevision: its labels are those of the pods, and its data none of ours."""
        name = f"{self._name}-{self._version}"
        if ("ControllerRevision", self._namespace, name) not in self._api.objects:
            labels = self._templates["leaderTemplate"]["metadata"]["labels"]
            owner = {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "name": self._name,
                "uid": "set",
            }
            self._api.create(
                {
                    "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1,
                    "metadata": {
                        "name": name, "namespace": self._namespace, "labels": labels,
                        "ownerReferences": [{**owner, "controller": True}],
                    },
                    "data": {"spec": {"template": {}}},
                }
            )  # fmt: skip

    def _delete(self, pod: Json) -> None:
        self._api.delete("Pod", self._namespace, pod["metadata"]["name"])


def _pods(api: FakeApi, namespace: str) -> list[Json]:
    return [pod for pod in api.list("Pod", namespace) if NAME in pod["metadata"].get("labels", {})]


def _place(pod: Json) -> tuple[str, str]:
    return _label(pod, NAME), _label(pod, GROUP)


def _label(pod: Json, name: str) -> str:
    return str(pod["metadata"].get("labels", {}).get(name, ""))

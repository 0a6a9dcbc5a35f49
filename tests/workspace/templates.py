"""Templates of pods to test with: one with every field, and what writers of Workspaces could try."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

EVERY_FIELD: Json = {
    "labels": {"team": "search", "example.com/cost-centre": "42"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "runtimeClassName": "nvidia",
    "priorityClassName": "serving",
    "schedulerName": "other-scheduler",
    "serviceAccountName": "with-identity",
    "imagePullPolicy": "Always",
    "topologySpreadConstraints": [
        {"topologyKey": "example.com/rack", "nodeTaintsPolicy": "Honor", "minDomains": 2}
    ],
    "volumes": [
        {"name": "prompts", "configMap": {"name": "prompts"}},
        {"name": "certificates", "secret": {"secretName": "tls"}},
        {"name": "buffer", "emptyDir": {"sizeLimit": "1024Mi", "medium": "Memory"}},
        {"name": "compiled", "persistentVolumeClaim": {"claimName": "compiled"}},
    ],
    "volumeMounts": [
        {"name": "prompts", "mountPath": "/etc/prompts", "readOnly": True},
        {"name": "compiled", "mountPath": "/compiled", "subPath": "vllm/v1"},
    ],
    "sidecars": [
        {
            "name": "log-shipper",
            "image": "registry.example/team/shipper:v1",
            "command": ["/shipper"],
            "args": ["--to", "logs.example.com"],
            "env": [
                {"name": "LEVEL", "value": "info"},
                {"name": "TOKEN", "secret": {"name": "shipper", "key": "token"}},
            ],
            "ports": [{"name": "metrics", "containerPort": 9102}],
            "resources": {"cpu": "0.1", "memory": "128Mi"},
            "volumeMounts": [{"name": "buffer", "mountPath": "/tmp"}],  # noqa: S108
        }
    ],
}

# Names and places of ours among harmless ones.
_KEYS = st.sampled_from([
    "team", "example.com/a", "weightyard.dev/workspace", "weightyard.dev/role", "cache.weightyard.dev/a",
    "app.kubernetes.io/name", "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class", "llm-d.ai/model",
    "pod-template-hash",
    "prometheus.io/port", "sidecar.istio.io/inject", "azure.workload.identity/use",
    "container.apparmor.security.beta.kubernetes.io/server", "-a", "a/b/c", "", "A.B/c", "weightyard.dev",
    "xweightyard.dev/a", "a" * 254,
])  # fmt: skip
_TEXTS = st.sampled_from(["", "a", "server", "unconfined", "A b"])
_NAMES = st.sampled_from(
    ["a", "b", "model", "server", "shm", "scratch", "adapter-sql", "weightyard-a", "A", ""]
)
_PATHS = st.sampled_from([
    "/a", "/a/b", "/b", "/model", "/model/x", "/models", "/adapters/sql", "/tmp", "/dev/shm", "/proc", "/", "a",  # noqa: S108
    "/a/../model", "/./model", "//model", "/.cache", "/a:b",
])  # fmt: skip


def _given(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({}, optional=fields)


_MOUNTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["a", "b", "model"]), "mountPath": _PATHS},
        optional={"subPath": st.sampled_from(["a", "../a", "/a"]), "readOnly": st.booleans()},
    ), max_size=2,
)  # fmt: skip
_VOLUMES = st.lists(
    st.fixed_dictionaries(
        {"name": _NAMES},
        optional={
            "configMap": st.just({"name": "a"}),
            "secret": st.just({"secretName": "a"}),
            "emptyDir": st.sampled_from([{"sizeLimit": "1Gi"}, {"sizeLimit": "0.5Gi"}, {}]),
            "persistentVolumeClaim": st.sampled_from([{"claimName": "a"}, {"claimName": "a", "readOnly": True}]),
        },
    ), max_size=2,
)  # fmt: skip
_SIDECARS = st.lists(
    st.fixed_dictionaries(
        {"name": _NAMES, "image": st.sampled_from(["a", ""])},
        optional={
            "command": st.lists(_TEXTS, max_size=1), "args": st.lists(_TEXTS, max_size=1),
            "env": st.lists(
                _given(name=st.sampled_from(["A", "9"]), value=_TEXTS, secret=st.just({"name": "a", "key": "k"})),
                max_size=2,
            ),
            "ports": st.lists(
                _given(
                    name=st.sampled_from(["a", "b", "http", "9", "a--b"]),
                    containerPort=st.sampled_from([0, 1, 2, 8000, 29_500]),
                ), max_size=2,
            ),
            "resources": _given(cpu=st.sampled_from(["100m", "-1"]), memory=st.sampled_from(["1Gi", "0.5Gi"])),
            "volumeMounts": _MOUNTS,
        },
    ), max_size=2,
)  # fmt: skip
# By field, what a document may have there.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "labels": st.dictionaries(_KEYS, _TEXTS, max_size=2),
    "annotations": st.dictionaries(_KEYS, _TEXTS, max_size=2),
    "runtimeClassName": st.sampled_from(["nvidia", "A", ""]),
    "priorityClassName": st.sampled_from(["high", "system-node-critical", ""]),
    "schedulerName": st.sampled_from(["other", "a b"]),
    "serviceAccountName": st.sampled_from(["admin", ""]),
    "imagePullPolicy": st.sampled_from(["Always", "Sometimes"]),
    "topologySpreadConstraints": st.lists(
        _given(
            topologyKey=st.sampled_from(["zone", "kubernetes.io/hostname", ""]), maxSkew=st.sampled_from([0, 1, 2]),
            whenUnsatisfiable=st.sampled_from(["DoNotSchedule", "ScheduleAnyway", "Never"]),
            minDomains=st.sampled_from([0, 1]), nodeAffinityPolicy=st.sampled_from(["Honor", "No"]),
            nodeTaintsPolicy=st.sampled_from(["Ignore", "No"]),
        ), max_size=3,
    ),
    "volumes": _VOLUMES,
    "volumeMounts": _MOUNTS,
    "sidecars": _SIDECARS,
}  # fmt: skip
# Of which many are refused.
TEMPLATES = _given(**FIELDS)

_GOOD_KEYS = st.sampled_from(["team", "example.com/a", "xweightyard.dev/a"])
# All of which are accepted: of names that others have, their neighbours.
ACCEPTED = _given(
    labels=st.dictionaries(_GOOD_KEYS, st.sampled_from(["", "a", "server"]), max_size=2),
    annotations=st.dictionaries(_GOOD_KEYS, st.text(max_size=8), max_size=2),
    runtimeClassName=st.just("nvidia"),
    priorityClassName=st.just("high"),
    schedulerName=st.just("other"),
    serviceAccountName=st.sampled_from(["admin", "chat", "default"]),
    imagePullPolicy=st.sampled_from(["Always", "IfNotPresent", "Never"]),
    topologySpreadConstraints=st.lists(
        st.fixed_dictionaries(
            {"topologyKey": st.sampled_from(["zone", "kubernetes.io/hostname", "topology.kubernetes.io/zone"])},
            optional={
                "maxSkew": st.integers(1, 9), "whenUnsatisfiable": st.sampled_from(["DoNotSchedule", "ScheduleAnyway"]),
                "nodeAffinityPolicy": st.just("Honor"), "nodeTaintsPolicy": st.just("Ignore"),
            },
        ), max_size=3, unique_by=lambda each: each["topologyKey"],
    ),
    volumes=st.just(EVERY_FIELD["volumes"]),
    sidecars=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["a", "servers", "model"]), "image": st.text(min_size=1, max_size=8)},
            optional={
                "command": st.lists(st.text(max_size=4), max_size=2), "args": st.lists(st.text(max_size=4), max_size=2),
                "resources": _given(cpu=st.just("0.1"), memory=st.just("1024Mi")),
                "env": st.just([{"name": "A", "secret": {"name": "a", "key": "k"}}]),
            },
        ), max_size=2, unique_by=lambda each: each["name"],
    ),
)  # fmt: skip

"""Documents for tests: the smallest CachedModel, and any spec that a server might be given."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cache_agent.api.kube_objects import API_VERSION

Json = dict[str, Any]


def cached_model(name: str = "chat", image: str = "registry.example/m:1", **spec: Any) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": "CachedModel",
        "metadata": {"name": name},
        "spec": {"image": image, **spec},
    }


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries({}, optional=fields)


_TIMES = st.sampled_from(["00:00", "22:30", "24:00", "7:00"])
_LABELS = st.sampled_from(["", "a", "A.b_c-1", "-a", "a/b", "a" * 64])
SPECS = st.fixed_dictionaries(
    {
        "image": st.sampled_from(
            ["", "a/b:c", "docker:x", "docker://a/b:c", "oci:/d:t", "oci://r.example/b:c"]
        )
    },
    optional={
        "variant": st.sampled_from(["int8", "int8-w8a16", "Int8", ""]),
        "nodeSelector": st.dictionaries(
            st.sampled_from(["", "gpu", "x.y/z", "k" * 318]), _LABELS, max_size=2
        ),
        "tier": st.sampled_from(["disk", "memory", "tape"]),
        "pin": st.sampled_from([True, False, "yes"]),
        "priority": st.sampled_from([-1, 0, 99, 100]),
        "pullSecret": st.sampled_from(["a.b", "A"]),
        "runtimeImage": st.sampled_from(["vllm/vllm-openai:v1", ""]),
        "window": st.fixed_dictionaries(
            {},
            optional={
                "start": _TIMES,
                "end": _TIMES,
                "days": st.lists(st.sampled_from(["Mon", "Tue", "mon"]), max_size=3),
                "timeZone": st.sampled_from(["UTC", "Europe/Berlin", "", "a b"]),
            },
        ),
        "bandwidth": st.sampled_from(["100M", "1.5G", "0"]),
    },
)

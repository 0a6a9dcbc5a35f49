"""NodeCaches and views of any size, for tests and benchmarks of the page."""

from __future__ import annotations

from typing import Any

from cache_agent.api.node_cache import NodeCache
from cache_agent.api.page.node_rows import node_rows
from cache_agent.api.page.view import View, compose

Json = dict[str, Any]
GB = 10**9
VERIFIED = "2026-01-31T22:00:00Z"
STATES = ("Fetching", "Waiting", "Failed", "Warming", "Pending")


def key_of(number: int) -> str:
    return f"sha256:{number:08x}" + f"{number:08x}" * 7


def node(name: str = "gpu-1", **status: Any) -> NodeCache:
    return NodeCache.model_validate(
        {
            "apiVersion": "weightyard.dev/v1alpha1", "kind": "NodeCache", "metadata": {"name": name},
            "spec": {"node": name}, "status": status,
        }
    )  # fmt: skip


def held(number: int, **more: Any) -> Json:
    """A model that a node has."""
    return {
        "key": key_of(number), "image": f"registry.example/team/model-{number}:v1@{key_of(number)}", "variant": "bf16",
        "size": 16 * GB, "tier": "disk", "verifiedAt": VERIFIED, **more,
    }  # fmt: skip


def desired(number: int, state: str, **more: Any) -> Json:
    """A node's progress with a CachedModel."""
    return {
        "name": f"model-{number}", "state": state, "modelKey": key_of(number),
        "image": f"registry.example/team/model-{number}:v1@{key_of(number)}", "variant": "bf16", **more,
    }  # fmt: skip


def busy_node(number: int, models: int) -> NodeCache:
    """A node that has most models and fetches, or waits for, the others."""
    has: list[Json] = []
    wants: list[Json] = []
    for each in range(models):
        if (number * 7 + each * 3) % 11 < 8:
            tier = "memory" if (number + each) % 5 == 0 else "disk"
            has.append(held(each, tier=tier, pinned=each % 9 == 0, leases=(number + each) % 4))
        elif each % 2:
            state = STATES[(number + each) % len(STATES)]
            message = (
                "The registry answers 503; it is tried again in 1 min." if state == "Failed" else ""
            )
            wants.append(
                desired(
                    each, state, bytesDone=4 * GB, bytesTotal=16 * GB, bytesPerSecond=900_000_000, secondsLeft=13,
                    sources=["peer gpu-1", "registry registry.example"], message=message,
                )
            )  # fmt: skip
    space = {
        "total": 2000 * GB,
        "used": 16 * GB * len(has),
        "free": 2000 * GB - 16 * GB * len(has),
        "evictable": 90 * GB,
    }
    return node(
        f"gpu-{number:03}", models=has, desired=wants, space=space, held=f"{len(has)}/{models}"
    )


def workspace(name: str, *, ready: bool = False, **more: Any) -> Json:
    """A Workspace's row."""
    steps = [
        {"title": "Model resolved", "state": "done", "reason": "Pinned", "said": "It serves bf16."},
        {
            "title": "Model on its nodes", "state": "done" if ready else "now", "since": VERIFIED,
            "said": "1 of 2 nodes holds the model.",
        },
        {"title": "Place for each replica", "state": "done" if ready else "later"},
        {"title": "Server answers", "state": "done" if ready else "later"},
    ]  # fmt: skip
    return {
        "name": name, "space": "team-a", "ready": ready, "reason": "Ready" if ready else "Fetching", "bad": False,
        "why": "" if ready else "1 of 2 nodes holds the model; it is being fetched on gpu-002.", "replicas": 2,
        "readyReplicas": 2 if ready else 0, "steps": steps, "cached": "2/2" if ready else "1/2",
        "model": key_of(1)[7:27],
        "image": f"registry.example/team/model-1:v1@{key_of(1)}", "variant": "bf16",
        "running": 3, "waiting": 1,
        "versions": [
            {"number": 4, "id": "ab12", "image": "registry.example/team/model-1:v1", "variant": "bf16", "wanted": True}
        ],
        "pods": [
            {"name": f"{name}-7d9c-1", "state": "starting", "node": "gpu-002", "version": "ab12", "since": VERIFIED,
             "why": "waiting for 16 GB from a peer, 13 s left"},
            {"name": f"{name}-7d9c-2", "state": "waiting for a node", "version": "ab12", "since": VERIFIED},
        ],
        "starts": [{
            "version": 4, "pod": f"{name}-7d9c-1", "node": "gpu-002", "at": VERIFIED, "current": "compile",
            "stages": [
                {"name": "node", "seconds": 1.2}, {"name": "volume", "seconds": 21.4, "bytes": 16 * GB},
                {"name": "volume", "seconds": 20.0, "bytes": 12 * GB, "tier": "peer"},
                {"name": "volume", "seconds": 21.0, "bytes": 4 * GB, "tier": "registry"},
                {"name": "image", "seconds": 3.0}, {"name": "process", "seconds": 9.5},
                {"name": "engine", "seconds": 4.1}, {"name": "weights", "seconds": 6.6},
            ],
        }],
        **more,
    }  # fmt: skip


def rollout(**more: Any) -> Json:
    """The row of a canary that is compared with the version before."""
    titles = [
        "Give it 10 % of the requests",
        "Compare both versions for 5 min",
        "Give it 50 % of the requests",
    ]
    return {
        "strategy": "canary", "phase": "Progressing", "open": True, "version": 5, "stable": 4, "step": 2, "steps": 3,
        "weight": 10, "attained": 25, "since": VERIFIED, "reason": "Comparing",
        "why": "Both versions are compared for 300 s.",
        "stages": [
            {"title": title, "state": state} for title, state in zip(titles, ("done", "now", "later"), strict=True)
        ],
        "measures": [
            {"name": "failed requests", "stable": "0.001", "candidate": "0.002", "limit": "0.011", "passed": True},
            {"name": "p95 time to first token in seconds", "stable": "0.8", "candidate": "1.9", "limit": "1",
             "passed": False},
        ],
        "commands": [{"command": "weightyard rollout abort roll -n team-a", "does": "takes the new version back"}],
        **more,
    }  # fmt: skip


def cluster_view(nodes: int = 200, models: int = 50) -> View:
    """A whole cluster, with a server that is up, one whose version changes, and two that aren't up."""
    failed = "A volume of bad-1 can't be mounted: no access to registry.example/secret. Correct pullSecret."
    rows = {
        "team-a/chat": workspace("chat"),
        "team-a/code": workspace("code", ready=True),
        "team-a/roll": workspace("roll", serves=True, reason="Comparing", rollout=rollout()),
        "team-b/bad": workspace("bad", space="team-b", bad=True, reason="FailedMount", why=failed),
    }
    problems = [{"where": "team-b/bad", "what": failed, "workspace": "team-b/bad"}]
    found = [node_rows(busy_node(number, models)) for number in range(nodes)]
    return compose({"kind": "cluster", "name": "cluster"}, found, rows, problems)

"""Hostile objects in a cluster: a controller goes on with the others, whatever one Workspace or CachedModel says."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.cache_agent.prewarm.documents import cached_model
from tests.faults.campaign import Kind
from tests.faults.stage import Round
from tests.servers.process import until
from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import control
from tests.workspace.controller.simulation import Cluster

Json = dict[str, Any]
NAMES = ("workspace", "revision", "desired", "failed", "hash", "restarted-at")
VALUES: tuple[object, ...] = (
    None, True, -1, 0.5, 10**400, 1e308, "NaN", "1e99999999", "9" * 5000, "x" * 100_000, "", "\u0000", [], {},
    [[]] * 50,    "../../x", {"a": {"b": {"c": []}}}, ["--max-num-seqs", "0.5"], "--", "Inf", -(2**63),
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document, with each of its keys or indexes."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def spoil(document: Json, rng: random.Random) -> Json:
    """A few values of a specification become others; annotations and labels say anything."""
    made = copy.deepcopy(document)
    texts = [value for value in VALUES if isinstance(value, str)]
    for _ in range(rng.randint(1, 4)):
        container, key = rng.choice(list(places({"spec": made["spec"]}))[1:])
        # The stand-in for an API server and its agents takes the type of an image's name for granted.
        container[key] = copy.deepcopy(rng.choice(texts if key == "image" else VALUES))
    for name in ("annotations", "labels"):
        made["metadata"][name] = {f"weightyard.dev/{rng.choice(NAMES)}": rng.choice(texts)}
    return made


def workspace(rng: random.Random) -> Json:
    arguments = rng.choice([["--max-num-seqs", "0.5"], ["--max-model-len=1e400"], []])
    return samples.document(
        "hostile",
        scale={"min": 0, "max": 3},
        model={"image": samples.IMAGE, "variant": "bf16"},
        resources={"gpu": "L4", "nodeSelector": {"a": "b"}},
        runtime={"args": arguments},
    )


def model(rng: random.Random) -> Json:
    return cached_model("hostile", nodeSelector={"a": "b"}, priority=5, bandwidth="100M", pin=True)


def hostile_objects(make: Callable[[random.Random], Json], fresh: Round) -> None:
    """Beside them a Workspace that is right becomes ready, and goes on being watched."""

    async def scenario() -> None:
        cluster = Cluster()
        cluster.add_node("n1")
        async with HttpApi(cluster.api, plain=True) as http, http.client() as client:
            working = asyncio.create_task(control(client))
            try:
                for number in range(4):
                    bad = spoil(make(fresh.rng), fresh.rng)
                    bad["metadata"]["name"] = f"hostile-{number}"
                    cluster.api.create(bad)
                cluster.create_workspace()

                def done() -> bool:
                    if working.done():
                        return True
                    cluster.step()
                    return bool(cluster.ready_servers())

                await until(done, what="a ready Workspace")
                assert not working.done(), working.exception()
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    asyncio.run(scenario())


KINDS = (
    Kind("hostile Workspaces", partial(hostile_objects, workspace)),
    Kind("hostile CachedModels", partial(hostile_objects, model)),
)

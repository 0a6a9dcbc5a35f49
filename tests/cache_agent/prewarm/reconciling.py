"""A keeper over a node whose images are in memory, run beside a test that wants things and looks on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from cache_agent.api.node_cache import DesiredModelStatus, NodeCacheStatus
from cache_agent.node.node import Node
from cache_agent.node.threads import BlockingExecutor
from cache_agent.prewarm.outcome_log import OutcomeLog
from cache_agent.prewarm.reconciler import Reconciler
from cache_agent.prewarm.reconciler_options import ReconcilerOptions
from cache_agent.prewarm.runtime import ImageService, RuntimeImages
from cache_agent.prewarm.values import DesiredModel, FetchTarget
from modelimage.reference import ImageReference
from modelimage.repository import ImageReader
from tests.servers.process import until


class AsTheNode:
    """Every image is read as the node reads it; `asked` notes which secrets were named."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    async def reader(self, image: ImageReference, secret: str | None) -> ImageReader | None:
        self.asked.append(secret)
        return None


@dataclass
class Runtime:
    """A container runtime in memory. `refusals` are what the next pulls end with."""

    images: set[str] = field(default_factory=set)
    refusals: list[Exception] = field(default_factory=list)

    async def has(self, image: str) -> bool:
        return image in self.images

    async def pull(self, image: str, auth: Mapping[str, str]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.images.add(image)


def desired(name: str, image: str = "reg.test/m:v1", **options: Any) -> DesiredModel:
    return replace(DesiredModel(name, FetchTarget(image, None)), **options)


@dataclass
class Keeping:
    """A keeper that runs. `log` holds what it noted."""

    reconciler: Reconciler
    node: Node
    log: list[tuple[str, dict[str, object]]]

    def status(self) -> NodeCacheStatus:
        return self.reconciler.status(NodeCacheStatus())

    def wanted(self, name: str) -> DesiredModelStatus:
        return next(each for each in self.status().desired if each.name == name)

    async def reaches(self, name: str, state: str, reason: str | None = None) -> DesiredModelStatus:
        """Wait until a wish stands so."""

        def stands() -> DesiredModelStatus | None:
            found = self.wanted(name)
            return found if found.state == state and reason in (None, found.reason) else None

        try:
            return await until(stands, what=f"{name} that is {state} {reason or ''}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.wanted(name)}") from error


@asynccontextmanager
async def keeping(
    node: Node,
    open_reader: Callable[[ImageReference], ImageReader],
    *,
    options: ReconcilerOptions | None = None,
    runtime: ImageService | None = None,
    label_gone: Callable[[str], Awaitable[None]] | None = None,
    changed: Callable[[], None] = lambda: None,
) -> AsyncIterator[Keeping]:
    """Run a keeper until left."""
    log: list[tuple[str, dict[str, object]]] = []
    told = ("name", "reason", "message")
    executor = BlockingExecutor()

    def note(event: str, **fields: object) -> None:
        log.append((event, fields))

    async def authorize(image: str, secret: str) -> Mapping[str, str]:
        return {}

    reconciler = Reconciler(
        store=node.store,
        pull=node.pull,
        warmer=node.warmer,
        executor=executor,
        credentials=AsTheNode(),
        open_reader=open_reader,
        runtime=RuntimeImages(runtime, authorize, node.clock, lambda: 0.0),
        outcomes=OutcomeLog(
            note,
            node.engine.monotonic,
            ready=lambda seconds: None,
            failed=lambda *failure: note(
                "desired model failed", **dict(zip(told, failure, strict=True))
            ),
        ),
        note=note,
        # A label that is slow to go is waited for, however long that takes.
        options=options or ReconcilerOptions(look_seconds=0.2, label_seconds=24 * 3600.0),
        clock=node.clock,
        monotonic=node.engine.monotonic,
        random=lambda: 0.0,
        label_gone=label_gone,
        changed=changed,
    )
    task = asyncio.create_task(reconciler.run())
    try:
        yield Keeping(reconciler, node, log)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        executor.close()

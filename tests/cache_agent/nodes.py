"""Nodes whose images are in memory and whose clock is the test's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cache_agent.daemon.node_setup import (
    NodeOptions,
    NodeParts,
    control_service,
    image_sources,
    open_node,
)
from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.values import PullRequest, PullResult
from cache_agent.node.control_service import Service
from cache_agent.node.node import Node
from cache_agent.observability.events import Events
from cache_agent.prewarm.node_status import details_without_agent, status_without_agent
from cache_agent.sources.source import SourcesOf
from cache_agent.store.checker import Checker, Violation
from cache_agent.store.disk import Observer, ignore
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.errors import NotFound
from modelimage.record import CHUNK_SIZE, Record, RecordFile
from modelimage.reference import ImageReference, parse_image
from modelimage.repository import ImageReader

BOOT = "boot-1"
# Whatever else fills the machine's disk.
ROOMY = SpaceLimits(min_free=Amount())
# An agent that takes no more of the machine into account than its own files.
UNDISTURBED = {"WEIGHTYARD_MIN_FREE": "0"}
# One worker, which waits for a source that stands still until the test ends that.
PATIENT = EngineOptions(streams=1, stall_seconds=24 * 3600.0)


@dataclass
class NodeFactory:
    """Opens nodes on `root` (and `more`), one after another. `images` maps `registry/repository` to a reader."""

    root: Path
    stack: ExitStack
    images: dict[str, ImageReader] = field(default_factory=dict)
    now: float = 1_800_000_000.0
    more: set[Path] = field(default_factory=set)

    def __call__(
        self,
        images: Mapping[str, ImageReader] | None = None,
        *,
        limits: SpaceLimits | None = None,
        engine: EngineOptions | None = None,
        sources: SourcesOf = image_sources,
        observe: Observer = ignore,
        events: Events | None = None,
        boot: str = BOOT,
        extra_roots: tuple[Path, ...] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Node:
        self.images.update(images or {})
        self.more.update(extra_roots)
        options = NodeOptions(
            self.root,
            limits or ROOMY,
            engine or EngineOptions(streams=3),
            extra_roots=extra_roots,
        )
        parts = NodeParts(
            self._reader,
            sources=sources,
            events=events or Events(),
            clock=lambda: self.now,
            monotonic=monotonic,
            observe=observe,
            boot=boot,
        )
        return self.stack.enter_context(open_node(options, parts))

    def check(self) -> None:
        """Prove each root on disk sound; no node may be open."""
        for root in (self.root, *sorted(self.more)):
            assert findings(root) == []

    def _reader(self, image: ImageReference) -> ImageReader:
        name = str(image).split("@", maxsplit=1)[0].rsplit(":", 1)[0]
        if name not in self.images:
            raise NotFound(f"no image {name}")
        return self.images[name]


def findings(root: Path) -> list[Violation]:
    """What the checker says of a closed store, as it is on disk."""
    paths = StorePaths(root)
    if not paths.ledger.exists():
        return []
    ledger = Ledger(paths)
    try:
        return Checker(paths, ledger).run()
    finally:
        ledger.close()


def begin_download(
    node: Node, record: Record, file: RecordFile, data: bytes, chunks: int = 1
) -> None:
    """Leave what a pull leaves that ended after the first chunks of a file had come."""
    node.store.first.partials.begin(record)
    begun = node.store.first.partials.open(file, room=None)
    for index in range(chunks):
        start = index * CHUNK_SIZE
        begun.write(memoryview(data)[start : start + CHUNK_SIZE], start)
        begun.mark(index)
    begun.close()


def pull(node: Node, image: str = "reg.test/m:v1", variant: str | None = None) -> PullResult:
    """Pull and wait."""
    result = node.pull(PullRequest(parse_image(image), variant)).result()
    assert result is not None, "the pull didn't end"
    return result


def service_of(node: Node) -> Service:
    """The control API's operations on a node without an agent."""
    at = node.store, node.clock
    return control_service(
        node, partial(status_without_agent, *at), partial(details_without_agent, *at)
    )

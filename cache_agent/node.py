"""The composition root: which concrete parts make up a node's cache, for the agent and for a single command alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.api.wire import CheckView, FindingView
from cache_agent.events import Events
from cache_agent.fetch.engine import Engine, EngineOptions
from cache_agent.fetch.pull import Pull, Puller, PullRequest
from cache_agent.sources.image import ImageSource
from cache_agent.sources.source import Source
from cache_agent.store.check import Checker
from cache_agent.store.disk import Observer, ignore
from cache_agent.store.space import SpaceLimits
from cache_agent.store.store import Store, StoreOptions
from modelimage.access import Access, open_reader
from modelimage.reference import ImageReference
from modelimage.repository import ImageReader
from modelimage.resolve import ResolvedModel


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What can be set about a node's cache."""

    root: Path
    limits: SpaceLimits = field(default_factory=SpaceLimits)
    engine: EngineOptions = field(default_factory=EngineOptions)


SourcesOf = Callable[[ResolvedModel, ImageReader, str], Sequence[Source]]


def image_sources(
    resolved: ResolvedModel, reader: ImageReader, repository: str
) -> Sequence[Source]:
    """The image itself as the only source."""
    return [ImageSource(reader, resolved.record, resolved.layers, repository)]


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What a node is made of beside its options. `observe` sees every change of the disk; `clock` is wall time."""

    open_reader: Callable[[ImageReference], ImageReader]
    sources: SourcesOf = image_sources
    events: Events = field(default_factory=Events)
    clock: Callable[[], float] = time.time
    observe: Observer = ignore
    boot: str | None = None

    @classmethod
    def real(cls, access: Access, events: Events | None = None) -> NodeParts:
        """The parts of a node in production."""
        return cls(lambda image: open_reader(image, access), events=events or Events())


class Node:
    """A store with an engine that fills it. A context manager; closing cancels what runs."""

    def __init__(self, options: NodeOptions, parts: NodeParts) -> None:
        self.options = options
        self.store = Store(
            options.root,
            StoreOptions(options.limits, parts.clock, parts.observe, parts.boot, parts.events),
        )
        self.engine = Engine(options.engine)
        self._puller = Puller.of(
            self.store, self.engine, parts.open_reader, parts.sources, parts.events
        )

    def pull(self, request: PullRequest) -> Pull:
        """Begin a pull; its handle tells the rest."""
        return self._puller.start(request)

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        """Prove the store's invariants; with `repair`, mend what can be mended and say which."""
        checker = Checker(self.store.paths, self.store.ledger, quick, busy=self._puller.busy)
        findings = checker.run()
        return CheckView(
            root=str(self.store.paths.root),
            files=checker.files,
            models=checker.models,
            bytes_read=checker.bytes_read,
            findings=[
                FindingView(kind=f.kind.value, path=str(f.path), detail=f.detail) for f in findings
            ],
        )

    def health_parts(self) -> Mapping[str, Callable[[], str | None]]:
        """Readiness checks beyond the store's own."""
        return {}

    def cancel_pulls(self) -> None:
        """Cancel what runs; closing waits for it."""
        self._puller.cancel_all()

    def close(self) -> None:
        self._puller.close()
        self.engine.close()
        self.store.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sources(resolved: ResolvedModel, reader: ImageReader, repository: str) -> Sequence[Source]:
    return [ImageSource(reader, resolved.record, resolved.layers, repository)]

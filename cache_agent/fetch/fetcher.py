"""Brings a resolved image into the store: chooses the root, fetches what is missing, publishes the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.errors import Vanished
from cache_agent.fetch.download import Downloads
from cache_agent.fetch.foreign.fetch import ForeignFetch, ForeignImage
from cache_agent.fetch.foreign.reusable_layers import LayerLocks
from cache_agent.fetch.model_fetch import ModelFetch, ModelImage
from cache_agent.fetch.pull_services import PullServices
from cache_agent.fetch.range_planner import unique_files
from cache_agent.fetch.resolver import ResolvedImage, StaleModel
from cache_agent.fetch.values import PullRequest, PullResult, PullState
from cache_agent.sources.other_root import OtherRootSource
from cache_agent.sources.runtime_manifests import layer_sizes
from cache_agent.sources.source import ResolvedSource, SourcesOf, Tier
from cache_agent.store.roots import Roots
from cache_agent.store.store import Store
from cache_agent.store.values import ImageOrigin
from modelimage.foreign import AnyRecord
from modelimage.repository import ImageReader

# How often a pull goes on after something else removed its files.
_ROUNDS: Final = 3
# Called for every model that a pull published, in the pull's thread, before the pull is done.
Published = Callable[[PullRequest, ResolvedSource, ImageReader], None]


def ignore_published(request: PullRequest, resolved: ResolvedSource, reader: ImageReader) -> None:
    """Does nothing: the default, for callers that need only the store."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches for all pulls of one node, each in its own thread, and keeps no state of any of them.

    The pulls share `downloads` and `layer_locks`, so that each file and foreign layer is fetched by one pull at a time.
    """

    roots: Roots
    sources: SourcesOf
    downloads: Downloads = field(default_factory=Downloads)
    layer_locks: LayerLocks = field(default_factory=LayerLocks)
    published: Published = ignore_published

    def fetch(self, image: ResolvedImage, pull: PullServices) -> PullResult:
        """Bring an image into the store. Raises NoSpace, DiskFailed, Cancelled, and the errors of the sources."""
        match image:
            case ModelImage():
                return self._model(image, pull)
            case ForeignImage():
                return self._foreign(image, pull)
            case StaleModel(model):
                return PullResult(model, model.path, 0, model.size, 0.0, stale=True)

    def _model(self, image: ModelImage, pull: PullServices) -> PullResult:
        resolved, record = image.resolved, image.resolved.record
        sizes = {file.digest: file.size for file in record.files}
        total = sum(file.size for file in unique_files(record.files))
        pull.show(total=total, reused=0, parts=())
        # Held from before the reuse check until published: else a reused file could be evicted in between.
        with self.roots.placed(record.key, lambda: sizes) as store, store.files.hold(sizes):
            sources = [
                *map(OtherRootSource, self.roots.others(store)),
                *pull.limited(self.sources(resolved, image.reader, pull.repository)),
            ]

            def fetched() -> PullResult:
                pull.enter(PullState.FETCHING)
                ModelFetch(store, image, sources, self.downloads, pull).run()
                return self._publish(store, record, resolved, pull)

            result = _again_if_removed(fetched)
        self.published(pull.request, resolved, image.reader)
        return result

    def _foreign(self, image: ForeignImage, pull: PullServices) -> PullResult:
        return _again_if_removed(lambda: self._fetch_foreign(image, pull))

    def _fetch_foreign(self, image: ForeignImage, pull: PullServices) -> PullResult:
        reader, manifest = image.reader, image.manifest
        pull.enter(PullState.FETCHING)
        with ExitStack() as hold:
            store = hold.enter_context(
                self.roots.placed(manifest.digest, lambda: layer_sizes(reader, manifest))
            )
            fetch = ForeignFetch(store, image, self.sources, self.layer_locks, pull, hold)
            record = fetch.get()
            note = str(record.original or "")
            result = replace(self._publish(store, record, fetch.resolved(), pull), note=note)
            # After publishing: until then the journal is what a restarted pull continues from.
            fetch.forget()
        self.published(pull.request, fetch.resolved(), reader)
        return result

    def _publish(
        self, store: Store, record: AnyRecord, resolved: ResolvedSource, pull: PullServices
    ) -> PullResult:
        pull.enter(PullState.PUBLISHING)
        seconds, progress = pull.seconds, pull.snapshot()
        # Bytes copied from another root of this node were in the cache already.
        fetched = sum(size for tier, _, size in progress.by_source if tier != Tier.DISK.value)
        # Seconds to fetch the whole model again, extrapolated from this pull: the eviction policy's cost.
        cost = seconds * progress.total / fetched if fetched else 0.0
        origin = ImageOrigin(
            image=str(pull.request.image),
            repository=pull.repository,
            root=resolved.root.digest,
            manifest=resolved.manifest.digest,
            variant=record.variant,
            requested_variant=pull.request.variant,
        )
        model = store.models.publish(record, origin, cost)
        return PullResult(model, model.path, fetched, progress.reused, seconds)


def _again_if_removed(fetch: Callable[[], PullResult]) -> PullResult:
    """Run a fetch again when something else removed what it was using. Raises Vanished when that doesn't end."""
    # What was verified and is still there isn't fetched again.
    for _ in range(_ROUNDS - 1):
        with suppress(Vanished):
            return fetch()
    return fetch()

"""Pulls one model: resolve, reuse stored files, reserve space, fetch, publish.

Each pull runs in its own thread; callers use its handle. Concurrent pulls share downloads: a node downloads each file
once, and a second pull waits for it and raises its priority.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from cache_agent.access.signatures import Trust
from cache_agent.errors import Cancelled
from cache_agent.fetch.caching_reader import CachingReader
from cache_agent.fetch.download import Download, Downloads, followed_layers
from cache_agent.fetch.engine import FetchEngine
from cache_agent.fetch.foreign.fetch import ForeignFetch, ForeignImage, Progressing
from cache_agent.fetch.foreign.known import LayerLocks
from cache_agent.fetch.job import ChunkSink, Job, SourceRetryPolicy, by_source
from cache_agent.fetch.range_planner import FileQueue, plan_queues, unique_files
from cache_agent.fetch.reuse_check import ReuseCheck
from cache_agent.fetch.values import (
    PRIORITY_WAITING,
    PullRequest,
    PullResult,
    PullSnapshot,
    PullState,
)
from cache_agent.observability.events import Events, PullEnd
from cache_agent.sources.decorators import Limited
from cache_agent.sources.other_root import OtherRootSource
from cache_agent.sources.runtime_manifests import layer_sizes
from cache_agent.sources.source import ResolvedSource, Source, Tier
from cache_agent.sources.throttle import Caps
from cache_agent.store.roots import Roots
from cache_agent.store.store import Store
from cache_agent.store.values import ImageOrigin, repository_of
from modelimage.descriptor import LINUX_AMD64, Descriptor, Platform
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, UnknownVariant, Unreachable
from modelimage.foreign import AS_PUBLISHED, AnyRecord, is_ours, resolve_manifest
from modelimage.record import Record, RecordFile
from modelimage.reference import EngineReference, ImageReference
from modelimage.repository import ImageReader
from modelimage.resolve import ResolvedModel, resolve_root

# Called for every model that a pull published, in the pull's thread, before the pull is done.
Published = Callable[[PullRequest, ResolvedSource, ImageReader], None]


def ignore_published(request: PullRequest, resolved: ResolvedSource, reader: ImageReader) -> None:
    """Does nothing: the default, for callers that need only the store."""


@dataclass(frozen=True, slots=True)
class Puller:
    """Starts pulls and tracks the running ones. `sources` returns a resolved model's sources, fastest first.

    `platform` chooses among the images of a foreign index.
    """

    roots: Roots
    engine: FetchEngine
    open_reader: Callable[[ImageReference], ImageReader]
    sources: Callable[[ResolvedSource, ImageReader, str], Sequence[Source]]
    downloads: Downloads = field(default_factory=Downloads)
    publishing: threading.Lock = field(default_factory=threading.Lock)
    running: set[Pull] = field(default_factory=set)
    events: Events = field(default_factory=Events)
    policy: SourceRetryPolicy = field(default_factory=SourceRetryPolicy)
    published: Published = ignore_published
    platform: Platform = LINUX_AMD64
    claims: LayerLocks = field(default_factory=LayerLocks)
    trust: Trust = field(default_factory=Trust)

    def start(self, request: PullRequest) -> Pull:
        """Start a pull and return its handle without waiting. Raises InvalidInput for a Docker engine's image."""
        if isinstance(request.image, EngineReference):
            raise InvalidInput(
                f"can't pull from a docker engine: {request.image}",
                hint="Push the image to a registry, or build it into a directory with --to oci:DIR.",
            )
        pull = Pull(self, request, repository_of(request.image))
        self.running.add(pull)
        self.events.pull_started(str(request.image))
        pull.begin()
        return pull

    @property
    def busy(self) -> bool:
        """Whether any pull is running."""
        return bool(self.running)

    def cancel_all(self) -> None:
        """Cancel every running pull."""
        for pull in list(self.running):
            pull.cancel()

    def close(self) -> None:
        """Cancel every running pull and wait for their threads."""
        self.cancel_all()
        for pull in list(self.running):
            pull.join()


class Pull:
    """A pull and its handle. `watch`, `result`, `snapshot`, `when_ended` and `cancel` may be called from any thread."""

    def __init__(self, puller: Puller, request: PullRequest, repository: str) -> None:
        self._puller, self._request, self.repository = puller, request, repository
        self._thread = threading.Thread(target=self._main, name="pull", daemon=True)
        self._ended = threading.Event()
        self._started = puller.engine.monotonic()
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._result: PullResult | None = None
        self._error: BaseException | None = None
        self._state = PullState.RESOLVING
        self._phases = [(PullState.RESOLVING.value, 0.0)]
        self._total = self._reused = 0
        self.parts: list[Progressing] = []  # downloads running and committed, for progress
        self._jobs: list[Job] = []
        self._caps = Caps(request.caps)

    def begin(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for the end, successful or not."""
        self._thread.join()

    def cancel(self) -> None:
        """Stop soon without waiting. Verified chunks stay on disk for the next pull."""
        # The flag first, then the jobs: a job added meanwhile sees the flag in `check_cancelled`.
        self._cancelled.set()
        # Else a worker would sleep on in a bandwidth cap.
        self._caps.lift()
        for job in list(self._jobs):
            self._puller.engine.cancel(job)

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call `tell` exactly once: at the end in the pull's thread, or now if the pull has ended."""
        with self._lock:
            if not self._ended.is_set():
                self._listeners.append(tell)
                return
        tell()

    def result(self, timeout: float | None = None) -> PullResult | None:
        """Wait for the end and return the result; None after `timeout` seconds. Raises the pull's error."""
        if not self._ended.wait(timeout):
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def watch(self, interval: float) -> Iterator[PullSnapshot]:
        """Yield a snapshot every `interval` seconds, and a last one after the end."""
        while not self._ended.wait(interval):
            yield self.snapshot()
        yield self.snapshot()

    def snapshot(self) -> PullSnapshot:
        downloads, jobs = list(self.parts), list(self._jobs)
        return PullSnapshot(
            state=self._state,
            total=self._total,
            done=self._reused + sum(download.received for download in downloads),
            resumed=sum(download.resumed for download in downloads),
            reused=self._reused,
            by_source=tuple(by_source(jobs)),
        )

    # -- in the pull's own thread ------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._result = self._pull()
            self._state = PullState.DONE
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._error = error
            self._state = PullState.FAILED
        finally:
            self._puller.running.discard(self)
            self._end()

    def _enter(self, state: PullState) -> None:
        self._state = state
        seconds = self._puller.engine.monotonic() - self._started
        self._phases.append((state.value, seconds))

    def _end(self) -> None:
        error = self._error
        end = PullEnd(
            image=str(self._request.image),
            outcome="done" if error is None else type(error).__name__,
            seconds=self._puller.engine.monotonic() - self._started,
            reused=self._reused,
            by_source=tuple(by_source(self._jobs)),
            message=str(error or ""),
            phases=tuple(self._phases),
        )
        self._puller.events.pull_ended(end)
        # Under the lock, so that a listener is either in the list by now or called by `when_ended` itself.
        with self._lock:
            self._ended.set()
        for tell in self._listeners:
            tell()

    def _pull(self) -> PullResult:
        request, roots, trust = self._request, self._puller.roots, self._puller.trust
        reader = CachingReader(place := request.reader or self._puller.open_reader(request.image))
        try:
            root = reader.resolve(request.image.name)
            trust.check(request.image, place, root)
            ours = is_ours(reader, root)
            resolved = resolve_root(reader, root, request.variant) if ours else None
        except Unreachable:
            # Only an unreachable registry: a refusal or a missing tag must not be answered from the cache.
            known = roots.resolved(str(request.image), request.variant)
            if known is None or not trust.knows(request.image, roots.origin(known[0].key).root):
                raise
            return PullResult(known[0], known[0].path, 0, known[0].size, 0.0, stale=True)
        if resolved is None:
            return self._pull_foreign(reader, root)
        record = resolved.record
        self._total = sum(file.size for file in unique_files(record.files))
        sizes = {file.digest: file.size for file in record.files}
        # Held from before the reuse check until published: else a reused file could be evicted in between.
        with roots.placed(record.key, lambda: sizes) as store, store.hold(sizes):
            self._get_files(store, resolved, reader)
            result = self._publish(store, record, resolved)
        self._puller.published(request, resolved, reader)
        return result

    def _publish(self, store: Store, record: AnyRecord, resolved: ResolvedSource) -> PullResult:
        self._enter(PullState.PUBLISHING)
        seconds = self._puller.engine.monotonic() - self._started
        # Bytes copied from another root of this node were in the cache already.
        fetched = sum(n for tier, _, n in by_source(self._jobs) if tier != Tier.DISK.value)
        # Seconds to fetch the whole model again, extrapolated from this pull: the eviction policy's cost.
        cost = seconds * self._total / fetched if fetched else 0.0
        origin = ImageOrigin(
            image=str(self._request.image),
            repository=self.repository,
            root=resolved.root.digest,
            manifest=resolved.manifest.digest,
            variant=record.variant,
            requested_variant=self._request.variant,
        )
        with self._puller.publishing:
            model = store.publish(record, origin, cost)
        return PullResult(model, model.path, fetched, self._reused, seconds)

    def _pull_foreign(self, reader: ImageReader, root: Descriptor) -> PullResult:
        """Pull a foreign image: it has no record and one precision. Raises UnknownVariant for any other variant."""
        puller, request = self._puller, self._request
        if request.variant not in (None, AS_PUBLISHED):
            raise UnknownVariant(
                f"{request.image} has no variant {request.variant!r}: weightyard didn't build it",
                hint="Pull it without --variant.",
            )
        manifest = resolve_manifest(reader, root, puller.platform)
        image = ForeignImage(reader, root, self.repository, manifest)
        self._enter(PullState.FETCHING)
        with ExitStack() as hold:
            placed = puller.roots.placed(manifest.digest, lambda: layer_sizes(reader, manifest))
            store = hold.enter_context(placed)
            fetch = ForeignFetch(store, image, self._sources, puller.claims, self, hold)
            record = fetch.get()
            result = self._publish(store, record, fetch.resolved())
            # After publishing: until then the journal is what a restarted pull continues from.
            fetch.forget()
        puller.published(request, fetch.resolved(), reader)
        return result

    def show(self, *, total: int, reused: int, parts: Sequence[Progressing]) -> None:
        """See `Host.show`."""
        self._total, self._reused, self.parts = total, reused, list(parts)

    def run(
        self,
        tracks: Sequence[FileQueue],
        sources: Sequence[Source],
        carriers: Mapping[Digest, ChunkSink],
    ) -> None:
        """See `Host.run`."""
        job = self._job(tracks, sources, carriers)
        self._jobs.append(job)
        self.check_cancelled()
        self._puller.engine.run(job)

    def _get_files(self, store: Store, resolved: ResolvedModel, reader: ImageReader) -> None:
        record = resolved.record
        sources = [
            *map(OtherRootSource, self._puller.roots.others(store)),
            *self._sources(resolved, reader, self.repository),
        ]
        reuse = ReuseCheck(store, self.repository, reader, resolved.layers)
        left = unique_files(record.files)
        self._enter(PullState.FETCHING)
        while left:
            self.check_cancelled()
            left = [file for file in left if not self._reuse(reuse, record, file)]
            mine, theirs = self._puller.downloads.claim(store, left, self.repository, reuse.damaged)
            landed = self.parts
            self.parts = [*landed, *mine, *theirs]
            # Own downloads first, then wait: two pulls that waited for each other's files would never end.
            if mine:
                self._download(store, mine, record, sources)
            # A second round fetches only what reuse refused: now nothing but the image's own layers will do.
            sources = [source for source in sources if source.authorizes]
            for download in theirs:
                self._wait_for(download)
            # Files that other pulls downloaded are reused from the store if authorized, else downloaded by this pull.
            reuse.rebuilt.update(followed_layers(mine))
            # So are own files with bytes from a source that proves nothing; if refused, the image itself is read.
            settled = [f for f in mine if f.proven or reuse.allowed(record, f.file)]
            self.parts = [*landed, *settled]
            # Another pull's download names the layer of its own image; use this record's file instead.
            named = {file.digest: file for file in left}
            left = [named[f.file.digest] for f in (*theirs, *mine) if f not in settled]

    def _sources(
        self, resolved: ResolvedSource, reader: ImageReader, repository: str
    ) -> Sequence[Source]:
        found = self._puller.sources(resolved, reader, repository)
        if not self._request.caps:
            return found
        return [Limited(source, self._caps, self._caps.pause) for source in found]

    def _hurry(self, job: Job, priority: int) -> None:
        """Raise the job's priority for another pull. If a caller waits for that one, lift this pull's caps."""
        if priority >= PRIORITY_WAITING:
            self._caps.lift()
        self._puller.engine.hurry(job, priority)

    def _reuse(self, reuse: ReuseCheck, record: Record, file: RecordFile) -> bool:
        allowed = reuse.allowed(record, file)
        if allowed:
            self._reused += file.size
        return allowed

    def _download(
        self, store: Store, downloads: list[Download], record: Record, sources: Sequence[Source]
    ) -> None:
        try:
            self._fetch(store, downloads, record, sources)
        finally:
            # Closed before released: the next pull that claims a file opens the same partial.
            for download in downloads:
                download.close()
            self._puller.downloads.release(store, downloads)

    def _fetch(
        self, store: Store, downloads: list[Download], record: Record, sources: Sequence[Source]
    ) -> None:
        puller = self._puller
        need = sum(
            download.file.size - store.partial_bytes(download.file) for download in downloads
        )
        with store.reserve(need, evicting=self._request.evicting) as reservation:
            # The journal before the partials: recovery removes partials that no journal names.
            store.begin(record)
            missing = {}
            # Only if some bytes prove nothing will the reuse check need the layers' digests.
            proving = all(source.authorizes for source in sources)
            for download in downloads:
                before = store.partial_bytes(download.file)
                download.open()
                # A partial is named after its file only: a pull from another repository may have started it.
                download.proven = not download.resumed
                if download.resumed or not proving:
                    download.follow_layer(record.recipe(download.file.layer))
                # Opening has allocated the whole partial: its bytes count as used now, not as promised.
                reservation.spend(download.file.size - before)
                self.check_cancelled()
                missing[download.file.digest] = download.missing()
            job = self._job(
                plan_queues([download.file for download in downloads], missing),
                sources,
                {download.file.digest: download for download in downloads},
            )
            # Appended before the check below: `cancel` either finds the job in the list or is seen by the check.
            self._jobs.append(job)
            for download in downloads:
                download.hurry = lambda priority: self._hurry(job, priority)
            self.check_cancelled()
            puller.engine.run(job)

    def _job(
        self,
        tracks: Sequence[FileQueue],
        sources: Sequence[Source],
        carriers: Mapping[Digest, ChunkSink],
    ) -> Job:
        return Job(
            tracks,
            sources,
            carriers,
            priority=self._request.priority,
            monotonic=self._puller.engine.monotonic,
            policy=self._puller.policy,
        )

    def _wait_for(self, download: Download) -> None:
        """Wait for another pull's download to end, raising it to this pull's priority. Raises Cancelled."""
        # Raised each time: that pull may not have created its job yet.
        while not download.ended.wait(0.1):
            download.hurry(self._request.priority)
            self.check_cancelled()

    def check_cancelled(self) -> None:
        """Raises Cancelled after `cancel` was called."""
        if self._cancelled.is_set():
            raise Cancelled(
                "the pull was cancelled", hint="Pull again to continue where it stopped."
            )

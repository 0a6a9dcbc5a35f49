"""Fetches a foreign image into the store: describe, reuse layers, fetch the others, verify each, commit the files.

No file is visible before every layer of the image is verified, including layers without files. Finished layers survive
a crash: the journal lists their contents, and their bytes are in staged files.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.fetch.admission import GROUP_FILES
from cache_agent.fetch.foreign.fetch_plan import (
    FetchPlan,
    Found,
    LayerPlan,
    ResolvedForeign,
    assemble,
    distinct_layers,
    lacking,
    plan_layer,
)
from cache_agent.fetch.foreign.layer_sinks import Finished, RangedLayer, StreamedLayer
from cache_agent.fetch.foreign.reusable_layers import (
    LayerLocks,
    ReusableLayers,
    is_sound,
    recall_layer,
)
from cache_agent.fetch.foreign.staged_layer import SpaceReservation
from cache_agent.fetch.job import ChunkSink
from cache_agent.fetch.pull_services import Progressing, PullServices
from cache_agent.fetch.range_planner import FileQueue, unique_files
from cache_agent.sources.source import SourcesOf
from cache_agent.store.disk import read_plain
from cache_agent.store.journal import ForeignPullState, staged_name
from cache_agent.store.publisher import CompletedFile
from cache_agent.store.reservations import Reservation
from cache_agent.store.store import Store
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.foreign import (
    DerivedRecord,
    ForeignLayer,
    ForeignModel,
    LayerContents,
    Limits,
    derive,
    describe_foreign,
    readable_record,
)
from modelimage.record import MAX_RECORD_BYTES, RecordFile
from modelimage.repository import ImageReader

_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class ForeignImage:
    """A foreign image, read with one caller's credentials."""

    reader: ImageReader
    root: Descriptor
    manifest: Descriptor


@dataclass
class ForeignFetch:
    """Fetches one foreign image. Files it uses and layers it claims are kept until the owner of `hold` closes it."""

    store: Store
    image: ForeignImage
    sources: SourcesOf
    layer_locks: LayerLocks
    pull: PullServices
    hold: ExitStack
    _noted: ForeignPullState = field(init=False)
    _found: dict[Digest, Found] = field(default_factory=dict)
    _done: dict[Digest, LayerContents] = field(default_factory=dict)
    _arriving: dict[Digest, int] = field(default_factory=dict)
    _reused: set[Digest] = field(default_factory=set)
    _unkept: set[Digest] = field(default_factory=set)
    _parts: list[Progressing] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def manifest(self) -> Descriptor:
        return self.image.manifest

    def get(self) -> DerivedRecord:
        """Fetch the image; returns its derived record. All its files are in the store, held. Raises a pull's errors."""
        image = self.image
        self._noted = self.store.staged_files.recall(self.manifest.digest)
        reusable = ReusableLayers(self.store, image.reader, self.pull.repository)
        record = self._cached(reusable)
        if record is not None:
            return record
        # Against decompression bombs: more than the cache's budget could never be stored.
        limits = Limits(total_bytes=min(Limits().total_bytes, self.store.space.view().budget))
        described = describe_foreign(image.reader, self.manifest, limits=limits)
        try:
            return self._get(replace(described, root=image.root), reusable)
        except InvalidImage:
            # Malformed for good: no later pull can use the staged files.
            self.forget()
            raise

    def forget(self) -> None:
        """Remove the journal and staged files, also those of an earlier pull: the model is published, or refused."""
        self.store.staged_files.forget(self._noted)
        self.store.staged_files.forget(self._pull_state())

    def _get(self, model: ForeignModel, reusable: ReusableLayers) -> DerivedRecord:
        # Ends: each round adds to `_unkept`, whose layers are then fetched instead of reused.
        layers = distinct_layers(model)
        while True:
            self._look(layers, reusable)
            with ExitStack() as stack:
                self._claim(self._missing(layers), stack)
                # Another pull may have fetched some of them while this one waited for its claim.
                self._look(self._missing(layers), reusable)
                listed = self._gather(model, stack)
                unkept = lacking(listed, self._found)
                if not unkept:
                    record = self._let_in(listed)
                    # Claims last until the model is published; before, another pull wouldn't find these layers.
                    self.hold.enter_context(stack.pop_all())
                    return record
            # A cached model had the layer but didn't use one of its files, which wasn't kept: read the layer again.
            self._unkept |= unkept
            for digest in unkept:
                del self._found[digest]

    # -- what is there -----------------------------------------------------------------------

    def _cached(self, reusable: ReusableLayers) -> DerivedRecord | None:
        """The record of the model, if it is in the store and this caller may use it."""
        key = self.manifest.digest
        self._hold(file.digest for file in self.store.ledger.model_files(key))
        record = reusable.record(key)
        if record is not None:
            size = sum(layer.size for layer in record.layers)
            self.pull.show(total=size, reused=size, parts=())
        return record

    def _look(self, layers: Mapping[Digest, ForeignLayer], reusable: ReusableLayers) -> None:
        """Reuse the layers that this model shares with cached models."""
        for digest, layer in layers.items():
            found = None if digest in self._unkept else reusable.find(layer.descriptor)
            if found is None:
                continue
            files = {each.digest for each in found.contents.files.values()}
            # Held first, then checked: eviction may run in between.
            self._hold(files)
            if all(self.store.files.get(each) is not None for each in files):
                self._found[digest] = found
                self._reused.add(digest)

    def _missing(self, layers: Mapping[Digest, ForeignLayer]) -> dict[Digest, ForeignLayer]:
        return {digest: layer for digest, layer in layers.items() if digest not in self._found}

    def _claim(self, layers: Collection[Digest], stack: ExitStack) -> None:
        # Polled, so cancelling doesn't have to wait for another pull's layers.
        while not self.layer_locks.claim(layers, _POLL_SECONDS):
            self.pull.check_cancelled()
        stack.callback(self.layer_locks.release, layers)

    def _hold(self, digests: Iterable[Digest]) -> None:
        self.hold.enter_context(self.store.files.hold(list(digests)))

    # -- fetching ----------------------------------------------------------------------------

    def _gather(self, model: ForeignModel, stack: ExitStack) -> ForeignModel:
        """Fetch the missing layers; returns the model with the contents of all its layers."""
        # An open reservation, even of 0 bytes, keeps the store from removing staged files as leftovers.
        own = stack.enter_context(self.store.space.reserve(0))
        self._recall(model)
        partly = assemble(model, self._found)
        missing = self._missing(distinct_layers(model)).values()
        plans = [plan_layer(partly, layer) for layer in missing]
        self._show(model)
        if plans:
            room = self._reserve(plans, own, stack)
            failed = self._fetch(partly, plans, room)
            if failed:
                # Wrong bytes may come from a bad connection once; the second time the error is raised.
                for again in self._fetch(partly, [each.plan for each in failed], room):
                    again.check()
        return assemble(model, self._found)

    def _recall(self, model: ForeignModel) -> None:
        """Take over the layers that an earlier pull of this image finished."""
        # Read the journal again: another pull of this image may have ended while this one waited.
        self._noted = noted = self.store.staged_files.recall(model.key)
        reusable = ReusableLayers(self.store, self.image.reader, self.pull.repository)
        self._arriving |= noted.arriving
        self._arriving |= {digest: len(each.members) for digest, each in noted.done.items()}
        for digest, layer in self._missing(distinct_layers(model)).items():
            earlier = None if digest in self._unkept else noted.done.get(digest)
            if earlier is None or not reusable.is_readable(layer.descriptor):
                continue
            self._hold(each.digest for each in earlier.files.values())
            plan = plan_layer(assemble(model, self._found), layer)
            found = recall_layer(self.store, plan, earlier, self._watch)
            if found is not None:
                self._verified(digest, found)
                self._parts.append(Finished(layer.descriptor.size))

    def _reserve(
        self, plans: Sequence[LayerPlan], own: Reservation, stack: ExitStack
    ) -> SpaceReservation:
        """Reserve the space of all layers before the first byte is fetched. Raises NoSpace."""
        need = sum(max(0, plan.need - self._staged_bytes(plan)) for plan in plans)
        evicting = self.pull.request.evicting
        reservation = self.store.space.reserve(
            need, evicting=evicting, resumes=self._partials(plans), beside=own
        )
        return SpaceReservation(self.store, stack.enter_context(reservation), evicting=evicting)

    def _partials(self, plans: Sequence[LayerPlan]) -> set[str]:
        """Names of all that this pull has in `partial/`."""
        staged = {staged_name(plan.layer.digest, n).hex for plan in plans for n in plan.ranged}
        noted = self._noted.staged_files() | self._pull_state().staged_files()
        return staged | noted | {self.manifest.digest.hex}

    def _staged_bytes(self, plan: LayerPlan) -> int:
        staged_files = self.store.staged_files
        return sum(staged_files.size(plan.layer.digest, number) or 0 for number in plan.ranged)

    def _fetch(
        self, model: ForeignModel, plans: Sequence[LayerPlan], room: SpaceReservation
    ) -> list[RangedLayer]:
        """Fetch layers; returns those that are complete but have the wrong digest."""
        self._arriving |= {
            plan.layer.digest: len(plan.layer.members or ()) for plan in plans if plan.ranged
        }
        # Before the first byte: staged files that no journal names are removed as leftovers after a restart.
        self._note()
        ranged = [
            RangedLayer(plan, self.store, self._watch, self._verified)
            for plan in plans
            if plan.ranged
        ]
        passes = [
            StreamedLayer(plan, self.store, room, model.limits, self._verified)
            for plan in plans
            if not plan.ranged
        ]
        self._parts += [*ranged, *passes]
        self._show(model)
        try:
            self._run([*ranged, *passes], room)
        finally:
            for each in ranged:
                each.close()
        return [each for each in ranged if each.failure is not None]

    def _run(self, sinks: Sequence[RangedLayer | StreamedLayer], room: SpaceReservation) -> None:
        image, plan = self.image, FetchPlan.of([each.plan for each in sinks])
        resolved = ResolvedForeign(image.root, self.manifest, plan, plan.layers)
        sources = self.pull.limited(self.sources(resolved, image.reader, self.pull.repository))
        # The others name files by sha256, which is unknown until the layer is verified.
        authorizing = [source for source in sources if source.authorizes]
        by_name: dict[Digest, ChunkSink] = {}
        queues: list[FileQueue] = []
        for each in sinks:
            missing = each.open(room)
            by_name |= dict.fromkeys(missing, each)
            queues += each.plan.queues(missing)
            # Layers that are empty or were complete before a crash: no request will trigger their verification.
            each.advance()
        self.pull.run(queues, authorizing, by_name)

    def _watch(self, count: int) -> None:
        self.pull.check_cancelled()

    def _verified(self, layer: Digest, found: Found) -> None:
        """Record a verified layer in the journal. Called by the thread that finished it."""
        # The journal is written under the lock: an older state must not overwrite a newer one.
        with self._lock:
            self._found[layer] = found
            self._done[layer] = found.contents
            self._note()

    def _note(self) -> None:
        self.store.staged_files.note(self._pull_state())

    def _pull_state(self) -> ForeignPullState:
        return ForeignPullState(self.manifest.digest, dict(self._done), dict(self._arriving))

    def _show(self, model: ForeignModel) -> None:
        sizes = {each.digest: each.descriptor.size for each in model.layers}
        reused = sum(sizes[digest] for digest in self._reused & sizes.keys())
        self.pull.show(total=sum(sizes.values()), reused=reused, parts=list(self._parts))

    def resolved(self) -> ResolvedForeign:
        """The resolved image without layers to fetch, for callers that store its manifests."""
        return ResolvedForeign(self.image.root, self.manifest, FetchPlan.of([]), ())

    # -- letting in --------------------------------------------------------------------------

    def _let_in(self, model: ForeignModel) -> DerivedRecord:
        """Commit the model's files to the store and return its record. Every layer must be verified."""
        found = {
            file.path: self._found[file.layer].contents.files[file.member] for file in model.files
        }
        record = derive(self._with_record(model), found)
        members = {file.path: file.member for file in model.files}
        self._hold(file.digest for file in record.files)
        files = unique_files(record.files)
        # In groups, since an image may have tens of thousands of files: each costs flushes and a descriptor.
        for start in range(0, len(files), GROUP_FILES):
            self.pull.check_cancelled()
            self._admit(files[start : start + GROUP_FILES], members)
        return record

    def _with_record(self, model: ForeignModel) -> ForeignModel:
        """The model with the record among its files, if it lies in a layer that was read completely for this pull."""
        file = model.record_file
        if file is None or file.size > MAX_RECORD_BYTES:
            return model
        path = self.store.staged_files.path(file.layer, file.member)
        computed = self._found[file.layer].contents.files.get(file.member)
        # A layer that a cached model already had wasn't staged.
        with suppress(FileNotFoundError):
            data = read_plain(path)
            if computed is not None and Digest.of(data) == computed.digest:
                return replace(model, record=readable_record(data))
        return model

    def _admit(self, files: Sequence[RecordFile], members: Mapping[str, int]) -> None:
        store = self.store
        with ExitStack() as opened:
            completed = []
            for file in files:
                # Another model may have the file: then its staged copy isn't needed.
                if is_sound(store, file.digest):
                    continue
                damaged = store.files.get(file.digest) is not None
                staged_file = store.staged_files.reopen(file.layer, members[file.path], file)
                opened.callback(staged_file.close)
                completed.append(
                    CompletedFile(staged_file, file.digest, self.pull.repository, damaged)
                )
            store.files.admit(completed)
        for each in completed:
            if each.replace:
                store.repairer.relink(each.computed)

"""Repairs a damaged file: keeps its correct chunks and fetches only the others again from another tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cache_agent.fetch.download import Download
from cache_agent.fetch.engine import FetchEngine
from cache_agent.fetch.foreign.repair_sources import resolve_derived
from cache_agent.fetch.job import Job, SourceRetryPolicy
from cache_agent.fetch.range_planner import plan_queues, unique_files
from cache_agent.observability.events import Events, FileDamaged, FileRepaired
from cache_agent.sources.source import Source, SourcesOf
from cache_agent.store.links import find_record
from cache_agent.store.store import Store
from cache_agent.store.values import ImageOrigin, repository_of
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound, NotWritable, WeightyardError
from modelimage.foreign import AnyRecord, DerivedRecord
from modelimage.record import RecordFile
from modelimage.reference import ImageReference, LayoutReference, RegistryReference, parse_image
from modelimage.repository import ImageReader
from modelimage.resolve import resolve_model

PRIORITY_REPAIR = 50


@dataclass(frozen=True, slots=True)
class NodeRepairer:
    """Repairs files of one node. `pause` is called with the number of bytes read locally and may sleep."""

    engine: FetchEngine
    open_reader: Callable[[ImageReference], ImageReader]
    sources: SourcesOf
    events: Events
    pause: Callable[[int], None] = lambda count: None

    def repair(self, store: Store, digest: Digest) -> bool:
        """Repair a damaged file, or set it and its models aside. Returns whether it was repaired."""
        if not store.paths.root.is_dir():
            return False
        seen = store.repairer.state_of(digest)
        problem: WeightyardError | None = None
        # Any model that has the file will do: another model's image may still exist where one's is gone.
        for key in store.models.containing(digest):
            try:
                self._repair(store, key, digest)
            except WeightyardError as error:
                problem = error
            else:
                return True
        aside = store.repairer.set_aside(digest, seen)
        names = ", ".join(key.short for key in aside) or "none: it is in use"
        self.events.emit(
            FileDamaged(digest.hex, f"not repaired ({problem}); models set aside: {names}")
        )
        return False

    def restore_files(self, store: Store) -> int:
        """Fetch the files that stored models lack altogether; returns how many came back.

        A model whose source can't be reached is left to the caller.
        """
        restored = 0
        for key in store.ledger.model_keys():
            record = find_record(store.paths, key)
            for file in unique_files(record.files) if record else ():
                if store.files.get(file.digest) is None:
                    with suppress(WeightyardError):
                        self._repair(store, key, file.digest)
                        restored += 1
        return restored

    def restore_descriptions(self, store: Store) -> int:
        """Write the records and publish records of models that are missing or damaged; returns how many.

        From the copy in the model's directory or from its image; what has neither is left to the caller.
        """
        restored = 0
        for key in store.ledger.model_keys():
            with suppress(WeightyardError):
                restored += self._describe(store, key)
        return restored

    def _describe(self, store: Store, key: Digest) -> int:
        origin, record = self._origin(store, key), find_record(store.paths, key)
        if origin is not None and record is not None:
            return 0
        if origin is None:
            origin = self._origin_of_image(store, key, record)
        if record is None:
            record = self._record_of_image(origin, key)
        store.models.describe(record, origin)
        return 1

    def _origin(self, store: Store, key: Digest) -> ImageOrigin | None:
        try:
            return store.models.origin(key)
        except (InvalidImage, NotWritable):
            return None

    def _origin_of_image(self, store: Store, key: Digest, record: AnyRecord | None) -> ImageOrigin:
        """The publish record of a model, from the names that the ledger has for it. Raises NotFound."""
        for name, requested in store.ledger.names_of(key):
            image = parse_image(name)
            if not isinstance(image, RegistryReference | LayoutReference):
                continue
            root = store.ledger.resolved_ref(name, requested)
            if root is None:
                continue
            if isinstance(record, DerivedRecord):
                # A foreign model's key is its manifest's digest.
                return ImageOrigin(
                    name, repository_of(image), root.root, key, record.variant, requested
                )
            return self._described(image, root.root, key, requested)
        raise NotFound(f"nothing names an image of model {key.short}")

    def _described(
        self,
        image: RegistryReference | LayoutReference,
        root: Digest,
        key: Digest,
        requested: str | None,
    ) -> ImageOrigin:
        resolved = resolve_model(self.open_reader(image), str(root), requested)
        if resolved.record.key != key:
            raise NotFound(f"{image} is another model now")
        return ImageOrigin(
            image=str(image),
            repository=repository_of(image),
            root=root,
            manifest=resolved.manifest.digest,
            variant=resolved.record.variant,
            requested_variant=requested,
        )

    def _record_of_image(self, origin: ImageOrigin, key: Digest) -> AnyRecord:
        image = parse_image(origin.image)
        if isinstance(image, RegistryReference | LayoutReference):
            record = resolve_model(self.open_reader(image), str(origin.manifest)).record
            if record.key == key:
                return record
        raise NotFound(f"{origin.image} no longer holds model {key.short}")

    def _repair(self, store: Store, key: Digest, digest: Digest) -> None:
        # The damage may be to the record as well, which has a source of its own.
        self._describe(store, key)
        origin = store.models.origin(key)
        stored = find_record(store.paths, key)
        if stored is None:
            raise NotFound(f"the record of model {key.short} is gone")
        record, sources = self._resolve(stored, origin)
        file = next((f for f in record.files if f.digest == digest), None)
        if file is None or record.key != key:
            raise NotFound(f"{origin.image} no longer holds {digest.short}")
        download = Download(file, origin.repository, store, replace=True)
        # Space for the whole file: the damaged one stays until the repaired one replaces it.
        need = file.size - store.partials.size(download.identity)
        with (
            store.gate.working(),
            store.files.hold([digest]),
            store.space.reserve(need, resumes={download.identity.hex}) as reservation,
        ):
            store.partials.begin(record)
            try:
                download.open(reservation, self.pause)
                fetched = self._fetch(download, sources)
            finally:
                download.close()
                store.partials.end(record)
        self.events.emit(FileRepaired(digest.hex, fetched))

    def _fetch(self, download: Download, sources: Sequence[Source]) -> int:
        file: RecordFile = download.file
        missing = download.missing()
        job = Job(
            plan_queues([file], {file.digest: missing}),
            sources,
            {file.digest: download},
            priority=PRIORITY_REPAIR,
            monotonic=self.engine.monotonic,
            policy=SourceRetryPolicy(),
        )
        self.engine.run(job)
        return len(missing)

    def _resolve(
        self, record: AnyRecord, origin: ImageOrigin
    ) -> tuple[AnyRecord, Sequence[Source]]:
        """Record and sources of the image, by the manifest digest that the model came from: the tag may have moved.

        Raises NotFound for an image that can't be fetched, and the reader's errors.
        """
        image = parse_image(origin.image)
        if not isinstance(image, RegistryReference | LayoutReference):
            raise NotFound(f"{origin.image} can't be fetched again")
        reader = self.open_reader(image)
        if isinstance(record, DerivedRecord):
            resolved, whole = resolve_derived(reader, record, origin)
            # Last: for each chunk it reads the layer from its beginning.
            return record, [*self.sources(resolved, reader, origin.repository), whole]
        found = resolve_model(reader, str(origin.manifest))
        return found.record, self.sources(found, reader, origin.repository)

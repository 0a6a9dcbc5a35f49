"""Answers the mirror's requests: authorize, then look in the manifest cache, the store, and last upstream.

Blocking; called in threads. Content is served for a repository only if it came from there, or the caller's own
credentials proved that it is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from cache_agent.access.authorizer import Admission, Authorizer
from cache_agent.access.callers import Caller
from cache_agent.access.upstream import UpstreamRegistries, blob_size
from cache_agent.fetch.readable import ready_file
from cache_agent.fetch.reuse_check import ReuseCheck
from cache_agent.fetch.values import PullRequest, ReadablePrefix
from cache_agent.servers.mirror.content import CachedManifest, Content, Layer, RelayedBlob
from cache_agent.servers.mirror.discovery import RegistryList, fetch_listing
from cache_agent.servers.mirror.layers import LINK_LAYER, LayerIndex
from cache_agent.servers.mirror.mirror_routes import MirrorRequest, RequestKind
from cache_agent.servers.shared_pulls import SharedPulls
from cache_agent.sources.runtime_manifests import layers_of
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from cache_agent.store.values import repository_of
from modelimage import canonical
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    InvalidImage,
    NotFound,
    UnknownVariant,
    Unreachable,
)
from modelimage.mediatypes import ANNOTATION_MODEL_KEY, INDEX_TYPES, OCI_LAYER_TAR
from modelimage.publication import record_layer
from modelimage.ranges import ByteRange
from modelimage.recipe import Literal, Recipe
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image
from modelimage.repository import BlobStream
from modelimage.resolve import resolve_model


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob that is asked for; `repository` is the unit of access checks."""

    image: RegistryReference
    repository: str
    digest: Digest


@dataclass
class MirrorService:
    """Answers for one node. `questions` fails fast, `transfers` retries and waits longer. Thread-safe."""

    store: Roots
    manifest_cache: ManifestCache
    pulls: SharedPulls
    gate: Authorizer
    questions: UpstreamRegistries
    transfers: UpstreamRegistries
    _layers: LayerIndex = field(init=False)

    def __post_init__(self) -> None:
        self._layers = LayerIndex(self.store)

    def content(self, wanted: MirrorRequest, caller: Caller) -> Content:
        """The requested content. Raises Refused, RegistryNotAllowed, NotFound, Unreachable."""
        repository = repository_of(wanted.image)
        if wanted.kind is RequestKind.MANIFEST:
            return self._manifest(wanted.image, repository, caller)
        if wanted.digest is None:
            raise NotFound(f"a list has no content: {wanted.upstream_path}")
        blob = _Blob(wanted.image, repository, wanted.digest)
        question = self.questions.blob_question(blob.image, blob.digest)
        return self._blob(blob, self.gate.admit(repository, caller, question))

    def listing(self, wanted: MirrorRequest, caller: Caller, query: str) -> RegistryList:
        """A list of a repository, from its registry. Raises Refused, RegistryNotAllowed, NotFound, Unreachable."""
        # Where anyone may read, the caller's credentials stay here.
        known = self.gate.known(repository_of(wanted.image), caller)
        reader = self.questions.repository(wanted.image, known.caller if known else caller)
        return fetch_listing(reader, wanted, query)

    def challenge(self, wanted: MirrorRequest) -> str | None:
        """Upstream's WWW-Authenticate challenge; None when it sends none or is unreachable."""
        try:
            return self.questions.challenge(wanted.image, wanted.upstream_path)
        except Unreachable:
            return None

    # -- manifests ---------------------------------------------------------------------------

    def _manifest(
        self, image: RegistryReference, repository: str, caller: Caller
    ) -> CachedManifest:
        admission = self.gate.admit(repository, caller, self.questions.manifest_question(image))
        if image.digest is not None:
            # A digest can't move, so the cached manifest is current.
            kept = self._kept(repository, image.digest)
            return kept or self._fetch_manifest(image, repository, admission)
        try:
            return self._fetch_manifest(image, repository, admission)
        except Unreachable:
            # With the registry down, the tag's last known manifest lets pods start.
            last = self.manifest_cache.tagged(repository, image.name)
            kept = self._kept(repository, last) if last else None
            if kept is None:
                raise
            return kept

    def _fetch_manifest(
        self, image: RegistryReference, repository: str, admission: Admission
    ) -> CachedManifest:
        reader = self.questions.repository(image, admission.caller)
        try:
            descriptor = reader.resolve(image.name)
            kept = self._kept(repository, descriptor.digest)
            data = kept.data if kept else reader.manifest(descriptor)
        except AccessDenied:
            # Access was revoked after the proof was cached: forget it now, not when it expires.
            self.gate.note(repository, admission.caller, allowed=False)
            raise
        if is_ours(descriptor, data):
            tags = {image.name: descriptor.digest} if image.digest is None else {}
            self.manifest_cache.keep(repository, [(descriptor, data)], tags)
        return CachedManifest(descriptor.digest, descriptor.media_type, data)

    def _kept(self, repository: str, digest: Digest) -> CachedManifest | None:
        found = self.manifest_cache.find(repository, digest)
        return CachedManifest(digest, *found) if found else None

    # -- blobs -------------------------------------------------------------------------------

    def _blob(self, wanted: _Blob, admission: Admission) -> Content:
        repository, digest = wanted.repository, wanted.digest
        # Proven local content first; relaying last, because it caches nothing.
        return (
            self._kept(repository, digest)
            or self._small_layer(repository, digest)
            or self._layer_of(repository, digest)
            or self._borrowed(wanted, admission)
            or self._arriving(wanted, admission)
            or self._relayed(wanted, admission)
        )

    def _small_layer(self, repository: str, digest: Digest) -> Layer | None:
        """The layers without weight files: the link layer and the record layer."""
        # The same bytes in every model image, so they reveal nothing about a repository.
        if digest == LINK_LAYER[0]:
            return Layer(*LINK_LAYER)
        record = self._layers.record_in(digest)
        if record is None or repository not in self._repositories(record.key):
            return None
        return Layer(digest, Recipe.from_segments([Literal(record_layer(record))]))

    def _repositories(self, key: Digest) -> set[str]:
        """The repositories that a model was pulled from."""
        images = map(parse_image, self.store.models.images_of(key))
        return {repository_of(each) for each in images if isinstance(each, RegistryReference)}

    def _layer_of(self, repository: str, digest: Digest) -> Layer | None:
        """A layer whose files all came through it, from this repository."""
        store = self.store
        for record in self._layers.with_layer(digest):
            files, recipe = record.layer_files(digest), record.recipe(digest)
            if recipe and all(store.files.is_authorized(repository, file) for file in files):
                return Layer(digest, recipe)
        return None

    def _borrowed(self, wanted: _Blob, admission: Admission) -> Layer | None:
        """A layer whose files came from other repositories, if rebuilding it proves them and the caller can read it."""
        for record in self._layers.with_layer(wanted.digest):
            recipe, store = record.recipe(wanted.digest), self.store.models.store_of(record.key)
            # Foreign images share whole layers, not files, and only in a pull: see `fetch.foreign.reusable_layers`.
            if recipe is None or store is None or not isinstance(record, Record):
                continue
            layer = Descriptor(OCI_LAYER_TAR, wanted.digest, recipe.size)
            reader = self.questions.repository(wanted.image, admission.caller)
            reuse = ReuseCheck(store, wanted.repository, reader, [layer])
            files = record.layer_files(wanted.digest)
            if files and all(reuse.allowed(record, file) for file in files):
                # Recorded, so that the next request needn't rebuild the layer.
                store.ledger.add_authorizations(wanted.repository, files)
                return Layer(wanted.digest, recipe)
        return None

    def _arriving(self, wanted: _Blob, admission: Admission) -> Layer | None:
        """A layer of a model that isn't cached yet: pull the whole model, once, and serve its chunks as they arrive."""
        repository = wanted.repository
        manifest = self._model_with(repository, wanted.digest)
        if manifest is None:
            return None
        image = RegistryReference(wanted.image.registry, wanted.image.repository, digest=manifest)
        reader = self.transfers.repository(image, admission.caller)
        try:
            record = resolve_model(reader, str(manifest)).record
        except (InvalidImage, NotFound, UnknownVariant):
            return None
        if wanted.digest not in {layer.digest for layer in record.layers}:
            return None
        request = PullRequest(image, reader=reader)
        pull = self.pulls.join((repository, record.key), request)
        files = {file.digest: file for file in record.layer_files(wanted.digest)}

        def ready(digest: Digest, position: int) -> ReadablePrefix | None:
            store, file = self.store, files[digest]
            # Proven for this repository: the same file may be stored through one that the caller can't read.
            here = store.files.get(digest) is not None and store.files.is_authorized(
                repository, file
            )
            if here or pull.result(0) is not None:
                return ReadablePrefix(store.files.path(digest), file.size)
            return ready_file(pull, digest, position)

        return Layer(wanted.digest, record.recipe(wanted.digest), ready=ready)

    def _model_with(self, repository: str, layer: Digest) -> Digest | None:
        """The digest of a cached model manifest of this repository that lists the layer."""
        manifest_cache = self.manifest_cache
        for digest, media_type in manifest_cache.documents(repository).items():
            found = (
                manifest_cache.find(repository, digest) if media_type not in INDEX_TYPES else None
            )
            # Searched before it is parsed: most documents are configs, which list no layers.
            if found is None or b'"layers"' not in found[1]:
                continue
            if layer in {each.digest for each in layers_of(found[1])}:
                return digest
        return None

    def _relayed(self, wanted: _Blob, admission: Admission) -> RelayedBlob:
        reader = self.transfers.repository(wanted.image, admission.caller)
        # The size comes through the client that fails fast; the transfer itself may wait and retry.
        size = blob_size(self.questions.repository(wanted.image, admission.caller), wanted.digest)
        descriptor = Descriptor(OCI_LAYER_TAR, wanted.digest, size)

        @contextlib.contextmanager
        def stream(wanted: ByteRange) -> Iterator[BlobStream]:
            with reader.blob(descriptor, wanted) as opened:
                yield opened

        return RelayedBlob(wanted.digest, size, stream)


def is_ours(descriptor: Descriptor, data: bytes) -> bool:
    """Whether a manifest is of our model images, or an index that lists one. Only those are cached."""
    document = canonical.parse(data, what=f"manifest {descriptor.digest}")
    if descriptor.media_type in INDEX_TYPES:
        entries = document.get("manifests")
        return isinstance(entries, list) and any(map(_names_model, entries))
    return _names_model(document)


def _names_model(document: object) -> bool:
    annotations = document.get("annotations") if isinstance(document, dict) else None
    return isinstance(annotations, dict) and ANNOTATION_MODEL_KEY in annotations

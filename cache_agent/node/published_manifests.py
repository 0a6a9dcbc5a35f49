"""Keeps the manifests of pulled images in the manifest cache, for container runtimes that ask for them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cache_agent.fetch.values import PullRequest
from cache_agent.observability.events import Events, ManifestsNotCached
from cache_agent.sources.runtime_manifests import cache_manifests
from cache_agent.sources.source import ResolvedSource
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.values import repository_of
from modelimage.errors import Fault, WeightyardError
from modelimage.reference import ImageReference, RegistryReference
from modelimage.repository import ImageReader


@dataclass(frozen=True, slots=True)
class PublishedManifests:
    """Called for every model that a pull published. `clock` returns the wall time in seconds.

    `is_anonymous`: whether this node reads an image without credentials; then every caller may read it.
    """

    manifest_cache: ManifestCache
    is_anonymous: Callable[[ImageReference], bool]
    events: Events
    clock: Callable[[], float]

    def __call__(self, request: PullRequest, resolved: ResolvedSource, reader: ImageReader) -> None:
        """Keep the manifests of an image. Raises DiskFailed and other faults of this node."""
        image = request.image
        try:
            cache_manifests(self.manifest_cache, image, resolved, reader)
            # A local image, or one read with the caller's own reader, says nothing about public access.
            if not isinstance(image, RegistryReference) or request.reader is not None:
                return
            if self.is_anonymous(image):
                # What was read without credentials is public.
                self.manifest_cache.note_public(repository_of(image), self.clock())
        except WeightyardError as error:
            if error.fault is Fault.NODE:
                raise
            # The model is complete; only a container runtime that pulls the
            # image has to use the registry for the rest.
            self.events.emit(ManifestsNotCached(str(image), error.message))

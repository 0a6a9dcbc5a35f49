"""Composes the sources of a model's pull, in the configured order of tiers.

Each source has one circuit breaker and one rate limit for the agent's lifetime, shared by all pulls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.config import SharedSection, TierSection
from cache_agent.peers.tier import Peers
from cache_agent.sources.decorators import Breaker, Limited, WithBreaker
from cache_agent.sources.directory import SharedDirectory
from cache_agent.sources.hub import HubSource
from cache_agent.sources.image import ImageSource
from cache_agent.sources.s3 import S3Bucket
from cache_agent.sources.shared import SharedSource, SharedStore
from cache_agent.sources.source import ResolvedSource, Source
from cache_agent.sources.throttle import Throttle
from modelimage import hub
from modelimage.errors import InvalidImage
from modelimage.recent import Recent
from modelimage.record import Record
from modelimage.reference import ImageReference, RegistryReference, parse_image
from modelimage.registry.destinations import Destinations
from modelimage.repository import ImageReader

# Sources are named after repositories, of which images name any number.
_MOST_KNOWN: Final = 1000


@dataclass(frozen=True, slots=True)
class _KnownSource:
    """What is kept of a source between pulls."""

    throttle: Throttle
    breaker: Breaker


@dataclass
class Tiers:
    """The sources of every pull of one agent. Callable as `SourcesOf`."""

    config: TierSection
    open_reader: Callable[[ImageReference], ImageReader]
    environ: Mapping[str, str] = field(default_factory=dict)
    rate_per_source: float = 0.0
    monotonic: Callable[[], float] = time.monotonic
    destinations: Destinations = field(default_factory=Destinations)
    peers: Peers | None = None
    _known: Recent[str, _KnownSource] = field(default_factory=lambda: Recent(_MOST_KNOWN))
    _places: tuple[SharedStore, ...] | None = None

    def __call__(
        self, resolved: ResolvedSource, reader: ImageReader, repository: str
    ) -> Sequence[Source]:
        """Sources of one model, in the configured order."""
        found = [
            self._wrapped(source)
            for tier in self.config.order
            for source in self._of_tier(tier, resolved, reader, repository)
        ]
        if not any(source.authorizes for source in found):
            # Bytes from other tiers don't authorize the caller: it may have to
            # fetch them once more from the image itself.
            found.append(self._wrapped(_image(resolved, reader, repository)))
        if self.peers is not None and "peer" in self.config.order:
            # Peers come first regardless of the order: a chunk that a node has needs no other source.
            return self.peers.wrap(found, resolved, repository)
        return found

    def places(self) -> tuple[SharedStore, ...]:
        """The shared stores, created once."""
        if self._places is None:
            self._places = tuple(map(_place, self.config.shared))
        return self._places

    def populated(self) -> Sequence[SharedStore]:
        """The shared stores that this node populates."""
        return (
            self.places() if self.config.populate_shared and "shared" in self.config.order else ()
        )

    def reconfigure(self, config: TierSection, rate_per_source: float) -> None:
        """Use other tiers from the next pull on, and another bandwidth cap per source immediately."""
        self.config, self._places, self.rate_per_source = config, None, rate_per_source
        for known in self._known.values():
            known.throttle.set_rate(rate_per_source)

    def _of_tier(
        self, tier: str, resolved: ResolvedSource, reader: ImageReader, repository: str
    ) -> Iterator[Source]:
        if tier == "shared":
            yield from (SharedSource(place) for place in self.places())
        elif tier == "registry":
            yield from self._mirrors(resolved, repository)
            yield _image(resolved, reader, repository)
        elif tier == "hub" and isinstance(resolved.record, Record):
            endpoint = hub.endpoint(self.environ, self.config.hub.endpoint)
            token = hub.token(self.environ)
            source = HubSource.of(resolved.record, endpoint, token, self.destinations)
            if source is not None:
                yield source

    def _mirrors(self, resolved: ResolvedSource, repository: str) -> Iterator[Source]:
        """The same repository on each mirror of its registry, nearest first; digests name the layers there too."""
        reference = parse_image(repository) if not repository.startswith("oci:") else None
        if not isinstance(reference, RegistryReference):
            return
        for host in self.config.mirrors.get(reference.registry, ()):
            mirror = replace(reference, registry=host)
            yield _image(resolved, self.open_reader(mirror), f"{host}/{reference.repository}")

    def _wrapped(self, source: Source) -> Source:
        # Kept by name: a pull must not forget that a source failed for the one before.
        known = self._known.get_or_make(source.name, self._new)
        return WithBreaker(Limited(source, known.throttle, time.sleep), known.breaker)

    def _new(self) -> _KnownSource:
        throttle = Throttle(self.rate_per_source, self.monotonic)
        return _KnownSource(throttle, Breaker(self.monotonic))

    def known(self) -> int:
        """How many sources are known by name."""
        return len(self._known)


def _image(resolved: ResolvedSource, reader: ImageReader, repository: str) -> Source:
    return ImageSource(reader, resolved.record, resolved.layers, repository)


def _place(section: SharedSection) -> SharedStore:
    if section.directory is not None:
        return SharedDirectory(section.directory)
    if section.s3 is None:
        raise InvalidImage("a shared store names neither s3 nor directory")
    options = {"endpoint_url": section.s3.endpoint, "region_name": section.s3.region}
    return S3Bucket(
        section.s3.bucket,
        section.s3.prefix,
        {name: value for name, value in options.items() if value},
    )

"""The peer tier of one agent: puts the peers before the sources of a pull.

Lives as long as the agent: keys, membership, reputations and announcements are shared by all pulls and by the peer
server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.peers.announcements import FetchAnnouncements
from cache_agent.peers.chunk_watch import ChunkListPoller
from cache_agent.peers.membership import Membership
from cache_agent.peers.peer_client import PeerLink
from cache_agent.peers.peer_source import Announced, LocalPeer, PeerSource
from cache_agent.peers.rate import RateBaseline
from cache_agent.peers.reputation import Reputation
from cache_agent.peers.request_signatures import Verifier
from cache_agent.peers.values import Member
from cache_agent.sources.source import ResolvedSource, Source
from cache_agent.store.partials import identity
from modelimage.errors import WeightyardError
from modelimage.recent import Recent
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image
from modelimage.repository import ImageReader

_ASKING_THREADS: Final = 8
_MOST_ZONES: Final = 20_000  # nodes of a cluster, and some that are gone
# The well-known label that cloud providers set on nodes.
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
# Opens a repository without any credentials.
Anonymous = Callable[[RegistryReference], ImageReader]


@dataclass
class Peers:
    """The peers of one agent. `encrypted`: connections use mutual TLS, so private models may be shared too."""

    own: LocalPeer
    announcements: FetchAnnouncements
    membership: Membership
    reputation: Reputation
    link: PeerLink
    verifier: Verifier
    encrypted: bool
    anonymous: Anonymous
    monotonic: Callable[[], float] = time.monotonic
    pace: RateBaseline = field(default_factory=RateBaseline)
    zone_given: bool = False
    _zones: Recent[str, str] = field(default_factory=lambda: Recent(_MOST_ZONES))
    # Threads of its own: a peer that doesn't answer holds one for as long as it is waited for, and no pull's.
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_ASKING_THREADS, thread_name_prefix="peers")
    )

    def wrap(
        self, sources: Sequence[Source], resolved: ResolvedSource, repository: str
    ) -> list[Source]:
        """Put the peers before the sources of a pull; returns the sources unchanged where peers can't serve it.

        Peers share only files with chunk digests, so no foreign image that isn't verified yet; and over unencrypted
        connections only public images.
        """
        record = resolved.record
        if not isinstance(record, Record) or not self.membership.may_have_others:
            return list(sources)
        # For the peer server too: without TLS it serves only public files.
        if self._is_public(resolved, repository):
            self.announcements.publish(identity(file) for file in record.files)
        elif not self.encrypted:
            return list(sources)
        peers = self._source()
        return [peers, *(Announced(source, peers) for source in sources)]

    def members(self) -> list[Member]:
        """The other members, with the zones from the settings or else from their responses."""
        return [
            member if member.zone else replace(member, zone=self._zones.get(member.id) or "")
            for member in self.membership.others()
        ]

    def take_zone(self, labels: Mapping[str, str]) -> None:
        """Set this node's zone from its labels, unless the settings have one. Affects pulls that start later."""
        if not self.zone_given:
            self.own = replace(self.own, zone=labels.get(ZONE_LABEL, ""))

    def close(self) -> None:
        """Wait for pending requests."""
        self._executor.shutdown(wait=True)

    def _source(self) -> PeerSource:
        watching = ChunkListPoller(
            self.members,
            self.link,
            self.reputation,
            self._executor,
            self.monotonic,
            self.own.rules.stall_timeout,
            self._learn_zone,
        )
        return PeerSource(
            self.own,
            self.announcements,
            watching,
            self.link,
            self.reputation,
            self.pace,
            self.monotonic,
        )

    def _learn_zone(self, peer: str, zone: str) -> None:
        self._zones.put(peer, zone)

    def _is_public(self, resolved: ResolvedSource, repository: str) -> bool:
        """Whether the registry serves the image to anonymous clients: one request per pull."""
        # A layout directory has no access control that could declare it public.
        if repository.startswith("oci:"):
            return False
        reference = parse_image(repository)
        if not isinstance(reference, RegistryReference):
            return False
        try:
            self.anonymous(reference).resolve(str(resolved.manifest.digest))
        except WeightyardError:
            return False
        return True

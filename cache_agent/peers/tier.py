"""The peer tier of one agent, put together from its settings: part of the composition root.

Lives as long as the agent: keys, membership, reputations and the board are shared by all pulls and by the server that
answers peers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.config import PeersSection
from cache_agent.net.addresses import Address
from cache_agent.observability.events import Events
from cache_agent.peers.announcements import FetchAnnouncements
from cache_agent.peers.client import PeerClient, PeerLink, TlsFiles
from cache_agent.peers.keys import KeyFile
from cache_agent.peers.membership import Membership
from cache_agent.peers.planner import PeerLimits
from cache_agent.peers.rate import RateBaseline
from cache_agent.peers.reputation import Reputation
from cache_agent.peers.signing import Verifier
from cache_agent.peers.source import Announced, LocalPeer, PeerSource
from cache_agent.peers.values import Member
from cache_agent.peers.watch import Watching
from cache_agent.sources.source import Resolved, Source
from cache_agent.store.partials import identity
from modelimage.errors import WeightyardError
from modelimage.record import Record
from modelimage.reference import RegistryReference, parse_image
from modelimage.repository import ImageReader

_ASKING_THREADS: Final = 8
# As clouds and Kubernetes itself label nodes.
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
# Opens a repository without any credentials.
Anonymous = Callable[[RegistryReference], ImageReader]


@dataclass
class Peers:
    """The peers of one agent. `encrypted`: they talk over mutual TLS, so that private models may be shared too."""

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
    _zones: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_ASKING_THREADS, thread_name_prefix="peers")
    )

    @classmethod
    def of(
        cls, section: PeersSection, *, streams: int, events: Events, anonymous: Anonymous
    ) -> Peers:
        """What the settings say. Raises InvalidInput for settings, keys and certificates that can't work."""
        own = section.name()
        keys = KeyFile(section.key_file, time.monotonic)
        keys()
        tls = tls_files(section)
        rules = PeerLimits(patience=section.stall_seconds, steal_after=section.stall_seconds / 4)
        listed = [Member(str(Address.parse(each.address)), each.zone) for each in section.members]
        dns = Address.parse(section.dns) if section.dns else None
        return cls(
            LocalPeer(own, section.zone, streams, section.zones == "apart", rules),
            FetchAnnouncements(time.monotonic),
            Membership(own, listed, dns, time.monotonic),
            Reputation(time.monotonic, events.peer_ejected),
            PeerClient(own, keys, time.time, tls, section.stall_seconds),
            Verifier(keys, {own}, time.time, section.clock_skew_seconds),
            tls is not None,
            anonymous,
            zone_given=bool(section.zone),
        )

    def wrap(self, sources: Sequence[Source], resolved: Resolved, repository: str) -> list[Source]:
        """The sources of a pull with the peers before them; as they are where peers can be of no use.

        Peers share what has chunk digests, so no foreign image that is still to be verified; and over connections that
        aren't encrypted only what the registry gives to anyone.
        """
        record = resolved.record
        if not isinstance(record, Record) or not self.membership.may_have_others:
            return list(sources)
        if self._is_public(resolved, repository):
            self.announcements.publish(identity(file) for file in record.files)
        elif not self.encrypted:
            return list(sources)
        peers = self._source()
        return [peers, *(Announced(source, peers) for source in sources)]

    def members(self) -> list[Member]:
        """The other members, with the zones that they told."""
        found = self.membership.others()
        with self._lock:
            return [
                member if member.zone else replace(member, zone=self._zones.get(member.id, ""))
                for member in found
            ]

    def take_zone(self, labels: Mapping[str, str]) -> None:
        """Take this node's zone from its labels, unless the settings name one; pulls that begin later go by it."""
        if not self.zone_given:
            self.own = replace(self.own, zone=labels.get(ZONE_LABEL, ""))

    def close(self) -> None:
        """Wait for the questions under way."""
        self._executor.shutdown(wait=True)

    def _source(self) -> PeerSource:
        watching = Watching(
            self.members,
            self.link,
            self.reputation,
            self._executor,
            self.monotonic,
            self.own.rules.patience,
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
        with self._lock:
            self._zones[peer] = zone

    def _is_public(self, resolved: Resolved, repository: str) -> bool:
        """Whether the registry gives the image to who shows no credentials: it is asked once a pull."""
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


def tls_files(section: PeersSection) -> TlsFiles | None:
    """The PEM files that the settings name, if they do."""
    tls = section.tls
    return TlsFiles(tls.ca, tls.certificate, tls.key, tls.name) if tls else None

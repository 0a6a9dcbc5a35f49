"""Assembles the peer tier of one agent from its settings. Part of the composition root."""

from __future__ import annotations

import time

from cache_agent.config import PeersSection
from cache_agent.net.listen_addresses import Address
from cache_agent.observability.events import Events, PeerEjected
from cache_agent.peers.announcements import FetchAnnouncements
from cache_agent.peers.chunk_planner import PeerLimits
from cache_agent.peers.keys import KeyFile
from cache_agent.peers.membership import Membership
from cache_agent.peers.peer_client import PeerClient, TlsFiles
from cache_agent.peers.peer_source import LocalPeer
from cache_agent.peers.reputation import Reputation
from cache_agent.peers.request_signatures import Verifier
from cache_agent.peers.tier import Anonymous, Peers
from cache_agent.peers.values import Member


def make_peers(
    section: PeersSection, *, streams: int, events: Events, anonymous: Anonymous
) -> Peers:
    """The peers of these settings. Raises InvalidInput for unusable settings, keys or certificates."""
    own = section.name()
    keys = KeyFile(section.key_file, time.monotonic)
    # Read once now: an unreadable key file must fail the start, not every request.
    keys()
    tls = tls_files(section)
    limits = PeerLimits(stall_timeout=section.stall_seconds, steal_after=section.stall_seconds / 4)
    listed = [Member(str(Address.parse(each.address)), each.zone) for each in section.members]
    dns = Address.parse(section.dns) if section.dns else None
    return Peers(
        LocalPeer(own, section.zone, streams, section.zones == "apart", limits),
        FetchAnnouncements(time.monotonic),
        Membership(own, listed, dns, time.monotonic),
        Reputation(time.monotonic, lambda peer, reason: events.emit(PeerEjected(peer, reason))),
        PeerClient(own, keys, time.time, tls, section.stall_seconds),
        Verifier(keys, {own}, time.time),
        tls is not None,
        anonymous,
        zone_given=bool(section.zone),
    )


def tls_files(section: PeersSection) -> TlsFiles | None:
    """The PEM files of the settings; None without TLS."""
    tls = section.tls
    return TlsFiles(tls.ca, tls.certificate, tls.key, tls.name) if tls else None

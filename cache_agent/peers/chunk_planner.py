"""Decides for each chunk that several nodes need: take it from a peer, fetch it from upstream, or wait. Pure.

Each chunk has an owner among the nodes that fetch the file: the first by rendezvous hashing, which every node computes
without communication. The owner fetches from upstream; the others wait and take the chunk from a node that has it. So
upstream sends one copy, and a node that joins or leaves changes the owner of its own share only.

A node's report (has, is fetching, received bytes) may be outdated or a lie. An outdated one costs at most a second copy
of one chunk; a lie costs time, since the receiver verifies every byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Limits for waiting on peers, in seconds. `fan_out`: how many nodes may take a chunk from one holder concurrently.

    A peer without progress for `stall_timeout` is ignored. A node whose own share is done takes over others' chunks
    that no node is fetching, the n-th in rank after n times `steal_after`. `poll`: the interval between two decisions.
    """

    stall_timeout: float = 10.0
    steal_after: float = 2.5
    fan_out: int = 8
    poll: float = 0.1


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node that fetches or has this file, for one chunk.

    `coming`: it announced that it fetches the chunk from upstream. `moving`: it made progress recently. `free_at`: it
    is busy until then, on the clock of `now`.
    """

    id: str
    zone: str = ""
    has: bool = False
    coming: bool = False
    moving: bool = True
    free_at: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalState:
    """This node, for one chunk. `waited`: seconds since it first needed it, `held`: since it first saw a holder.

    `idle`: its own share is done. `slots`: how many more chunks it may fetch from upstream now.
    """

    id: str
    zone: str = ""
    waited: float = 0.0
    held: float = 0.0
    idle: bool = False
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Take:
    """Take the chunk from this peer."""

    peer: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Decide again after `seconds`; with `in_line` as soon as this node has fetched another chunk from upstream."""

    seconds: float
    in_line: bool = False


@dataclass(frozen=True, slots=True)
class UseUpstream:
    """Fetch the chunk from an upstream source."""


Step = Take | Wait | UseUpstream
_UPSTREAM: Final = UseUpstream()


def weight(chunk: str, member: str) -> bytes:
    """A member's weight for a chunk; the highest owns it. (Thaler, Ravishankar: rendezvous hashing.)"""
    return hashlib.blake2b(f"{chunk}\0{member}".encode(), digest_size=8).digest()


def ranked(chunk: str, members: Iterable[str]) -> list[str]:
    """The members by weight for a chunk, its owner first."""
    return sorted(members, key=lambda member: (weight(chunk, member), member), reverse=True)


def decide(
    chunk: str, here: LocalState, peers: Sequence[Peer], now: float, rules: PeerLimits
) -> Step:
    """The next step for one chunk. `peers`: the live nodes that fetch or have the file, without this one.

    Laws: without peers it is Upstream if a slot is free; never Take from a peer that lacks the chunk; if only time
    passes, it becomes Take or Upstream.
    """
    if any(peer.has for peer in peers):
        return _from_holder(chunk, here, peers, now, rules)
    if any(peer.coming and peer.moving for peer in peers):
        return Wait(rules.poll)
    return _from_upstream(chunk, here, peers, rules)


def _from_holder(
    chunk: str, here: LocalState, peers: Sequence[Peer], now: float, rules: PeerLimits
) -> Step:
    """Take it from a holder in this zone, else across zones. Nodes queue by rank, so no holder is overloaded."""
    holders = [peer for peer in peers if peer.has]
    near = [peer for peer in holders if peer.zone == here.zone]
    # Only one node of a zone takes the chunk across zones; the others take it from that node.
    allowed = rules.fan_out * len(near) if near else 1
    # After `stall_timeout`, queue and zones no longer count: holders that never serve must not block the chunk.
    fail_fast = here.held >= rules.stall_timeout
    if not fail_fast and _rank(chunk, here, peers) >= allowed:
        return Wait(rules.poll)
    free = [peer for peer in near or holders if peer.free_at <= now]
    free = free or [peer for peer in holders if peer.free_at <= now and fail_fast]
    if free:
        # Hashed with this node's id: each node prefers another holder, so holders share the load.
        return Take(ranked(f"{chunk}\0{here.id}", [peer.id for peer in free])[0])
    if fail_fast:
        return _from_upstream(chunk, here, peers, rules)
    return Wait(max(rules.poll, min(peer.free_at for peer in near or holders) - now))


def _rank(chunk: str, here: LocalState, peers: Sequence[Peer]) -> int:
    """This node's rank among the nodes of its zone that lack the chunk."""
    lacking = [p.id for p in peers if not p.has and p.moving and p.zone == here.zone]
    return ranked(chunk, [here.id, *lacking]).index(here.id)


def _from_upstream(chunk: str, here: LocalState, peers: Sequence[Peer], rules: PeerLimits) -> Step:
    # Stalled peers don't count: their share passes to the next in rank.
    order = ranked(chunk, [here.id, *(peer.id for peer in peers if peer.moving)])
    rank = order.index(here.id)
    # Staggered by rank: without it, all idle nodes would fetch the same chunk from upstream.
    takes_over = here.idle and here.waited >= rules.steal_after * rank
    # Also staggered: there are holders, but none has served this node.
    overdue = here.waited >= rules.stall_timeout * (rank + 1) and here.held >= rules.stall_timeout
    if not (rank == 0 or takes_over or overdue):
        return Wait(rules.poll)
    return _UPSTREAM if here.slots > 0 else Wait(rules.poll * 3, in_line=True)

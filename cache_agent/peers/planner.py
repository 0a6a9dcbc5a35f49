"""Where a node gets a chunk that peers want too: from one of them, from upstream, or not yet. Pure.

Each chunk has an owner among the nodes that take part: the first by rendezvous hashing, which every node computes alike
without asking. The owner fetches from upstream, the others wait for it and take the chunk from whoever has it. So one
copy leaves upstream, and a node that joins or leaves changes the owner of its own share only.

What nodes say of themselves (has, is fetching, received so many bytes) may be late or a lie. A late word costs a
second copy of one chunk at worst; a lie costs time, since the receiver checks every byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """When to give up on others. Seconds; `fan_out` is how many nodes at once may take a chunk from one that has it.

    Without progress for `patience`, a peer counts for nothing. A node with nothing left of its own share takes over
    others' chunks that nobody has begun, the n-th in line after n times `steal_after`. `poll`: how soon to look again.
    """

    patience: float = 10.0
    steal_after: float = 2.5
    fan_out: int = 8
    poll: float = 0.1


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that takes part in this file, as seen from here, for one chunk.

    `coming`: it says that it is fetching the chunk from upstream. `moving`: it made progress lately. It asked not to be
    asked before `free_at`, on the clock of `now`.
    """

    id: str
    zone: str = ""
    has: bool = False
    coming: bool = False
    moving: bool = True
    free_at: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalState:
    """This node, for one chunk. `waited`: seconds since it first wanted it, `held`: since it first saw who has it.

    `idle`: nothing is left of its own share. `slots`: how many more chunks it may fetch from upstream now.
    """

    id: str
    zone: str = ""
    waited: float = 0.0
    held: float = 0.0
    idle: bool = False
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Take:
    """Get it from this peer."""

    peer: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after so many seconds; `in_line`: or once this node has fetched another chunk from upstream."""

    seconds: float
    in_line: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """Fetch it from where the image is."""


Step = Take | Wait | Upstream
_UPSTREAM: Final = Upstream()


def weight(chunk: str, member: str) -> bytes:
    """How much a member is meant for a chunk; who has most owns it. (Thaler, Ravishankar: rendezvous hashing.)"""
    return hashlib.blake2b(f"{chunk}\0{member}".encode(), digest_size=8).digest()


def ranked(chunk: str, members: Iterable[str]) -> list[str]:
    """Members by how much they are meant for a chunk, its owner first."""
    return sorted(members, key=lambda member: (weight(chunk, member), member), reverse=True)


def decide(
    chunk: str, here: LocalState, peers: Sequence[Peer], now: float, rules: PeerLimits
) -> Step:
    """What to do about one chunk now. `peers` are the live nodes that take part, this one not among them.

    Laws: without peers it is Upstream if a slot is free; never Take from one who hasn't got it; if nothing changes but
    time, it becomes Take or Upstream.
    """
    if any(peer.has for peer in peers):
        return _from_holder(chunk, here, peers, now, rules)
    if any(peer.coming and peer.moving for peer in peers):
        return Wait(rules.poll)
    return _from_upstream(chunk, here, peers, rules)


def _from_holder(
    chunk: str, here: LocalState, peers: Sequence[Peer], now: float, rules: PeerLimits
) -> Step:
    """From one in this zone, else across zones. Those who want it queue up, so that no holder is overrun."""
    holders = [peer for peer in peers if peer.has]
    near = [peer for peer in holders if peer.zone == here.zone]
    # One node of a zone carries the chunk across, the others take it from that one.
    places = rules.fan_out * len(near) if near else 1
    impatient = here.held >= rules.patience
    if not impatient and _place(chunk, here, peers) >= places:
        return Wait(rules.poll)
    free = [peer for peer in near or holders if peer.free_at <= now]
    free = free or [peer for peer in holders if peer.free_at <= now and impatient]
    if free:
        # Another order for each node: holders share the load.
        return Take(ranked(f"{chunk}\0{here.id}", [peer.id for peer in free])[0])
    if impatient:
        return _from_upstream(chunk, here, peers, rules)
    return Wait(max(rules.poll, min(peer.free_at for peer in near or holders) - now))


def _place(chunk: str, here: LocalState, peers: Sequence[Peer]) -> int:
    """This node's place among those of its zone that lack the chunk."""
    lacking = [p.id for p in peers if not p.has and p.moving and p.zone == here.zone]
    return ranked(chunk, [here.id, *lacking]).index(here.id)


def _from_upstream(chunk: str, here: LocalState, peers: Sequence[Peer], rules: PeerLimits) -> Step:
    order = ranked(chunk, [here.id, *(peer.id for peer in peers if peer.moving)])
    place = order.index(here.id)
    takes_over = here.idle and here.waited >= rules.steal_after * place
    overdue = here.waited >= rules.patience * (place + 1) and here.held >= rules.patience
    if not (place == 0 or takes_over or overdue):
        return Wait(rules.poll)
    return _UPSTREAM if here.slots > 0 else Wait(rules.poll * 3, in_line=True)

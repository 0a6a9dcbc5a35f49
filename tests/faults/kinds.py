"""The table of kinds. A new kind is a row in the module of its area."""

from __future__ import annotations

from tests.faults import cluster, damage, disks, kills, lies, peers, strangers
from tests.faults.campaign import Kind

KINDS: tuple[Kind, ...] = (
    *kills.KINDS,
    *disks.KINDS,
    *damage.KINDS,
    *lies.KINDS,
    *peers.KINDS,
    *strangers.KINDS,
    *cluster.KINDS,
)

"""How a route shares requests between the version that serves and a new one, and what is drained meanwhile. Pure.

Without a route every ready server behind the Workspace's Service gets the same share, and none of this applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from workspace.controller.observation.pod_start import seconds_since
from workspace.rollout_status import RolloutPhase, RolloutStatus

# Seconds for which servers must have had no requests: Gateways learn of a weight one after the other.
SETTLE_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class RoutedTraffic:
    """What is known of a route and of the servers behind it. Counts are of ready servers.

    `stable` and `candidate` are those of each version that its own backend has; `own` those of the Workspace's own
    Deployment that are of the new version already and that the Workspace's own Service has. `settled` is the new
    version's percent that all Gateways have accepted; None while they haven't. `asked` are the replicas of the new
    version's own Deployment. `switched` tells that the Workspace's own Deployment is of the new version. `idle` names
    the version whose servers were seen without requests; `drain_seconds` is how long they are waited for.
    """

    stable: int
    candidate: int
    own: int = 0
    settled: int | None = None
    asked: int = 0
    switched: bool = False
    idle: str = ""
    drain_seconds: int = 120


def new_weight(state: RolloutStatus, seen: RoutedTraffic) -> int:
    """The percent of requests for the new version. Law: never more than its ready servers carry, unless it has all."""
    if state.phase is RolloutPhase.COMPLETED or not seen.candidate or not state.replicas:
        return 0
    carried = min(100, 100 * seen.candidate // state.replicas)
    if _takes_all(state, seen):
        return carried
    # While its servers replace the old ones one by one, all of them are behind the Workspace's own Service, too.
    if state.phase is RolloutPhase.PROMOTING:
        return min(state.weight, carried)
    if not seen.stable:
        return 100
    return 0 if state.is_withdrawn else min(state.weight, carried)


def is_settled(state: RolloutStatus, seen: RoutedTraffic) -> bool:
    """Whether all Gateways share requests as they should now."""
    return seen.settled == new_weight(state, seen)


def draining(state: RolloutStatus, seen: RoutedTraffic, now: str) -> str | None:
    """The version without a share of the requests whose servers stay to finish theirs; None if none has to.

    It ends once they are idle, or after `drain_seconds`: then each gets as long again, as any server that stops.
    """
    if state.is_withdrawn and seen.asked and seen.candidate:
        version, weight = state.version, 0
    # Not once the Deployment is switched: from then on each old server finishes as it is stopped.
    elif _takes_all(state, seen) and not seen.switched and seen.stable:
        version, weight = state.stable, 100
    else:
        return None
    is_idle = seen.idle == version and seen.settled == weight
    late = seconds_since(state.since, now) >= seen.drain_seconds + SETTLE_SECONDS
    return None if is_idle or late else version


def drain_wait(state: RolloutStatus, seen: RoutedTraffic, now: str) -> float | None:
    """Seconds until servers that don't get idle are no longer waited for; None if none are waited for."""
    if draining(state, seen, now) is None:
        return None
    waited = seconds_since(state.since, now)
    return max(0.0, seen.drain_seconds + SETTLE_SECONDS - waited)


def holds_stable(state: RolloutStatus, seen: RoutedTraffic, now: str) -> bool:
    """Whether the servers of the version before stay as they are, though the new version takes over."""
    return draining(state, seen, now) == state.stable


def _takes_all(state: RolloutStatus, seen: RoutedTraffic) -> bool:
    """Whether the new version takes over with enough servers beside the old ones."""
    has_all = not state.in_place and seen.asked >= state.replicas > 0
    return state.phase is RolloutPhase.PROMOTING and has_all

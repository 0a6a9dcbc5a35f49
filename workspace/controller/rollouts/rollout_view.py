"""The rollout of a new version as the observed cluster has it: what it is decided by, and what follows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from workspace.controller.observation.objects import (
    asked_of,
    condition,
    deployed_version,
    has_labels,
    is_candidate,
    is_ready,
    of_version,
)
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.pod_problems import ServerProblem, worst_problem
from workspace.controller.observation.pod_start import seconds_of, seconds_since
from workspace.controller.observation.revisions import Revision, version_id
from workspace.controller.reasons import Reason
from workspace.controller.rollouts.rollout_plan import (
    Commands,
    RolloutInput,
    advance,
    serving,
    split,
    wakes_at,
)
from workspace.controller.rollouts.rollout_steps import refitted
from workspace.controller.rollouts.route_view import reachable, settled_weight, usable_route
from workspace.controller.rollouts.traffic import (
    RoutedTraffic,
    drain_wait,
    draining,
    holds_stable,
    is_settled,
    new_weight,
)
from workspace.render import names
from workspace.rollout_spec import Strategy
from workspace.rollout_status import RolloutPhase, RolloutStatus
from workspace.schema import Workspace

Json = dict[str, Any]

# Restarts after which a server that ends again and again is taken for broken: one may be a neighbour's fault.
_RESTARTS: Final = 3
_ENDINGS: Final = (Reason.CRASH_LOOP, Reason.OOM_KILLED)


def rollout_before(document: Json) -> RolloutStatus | None:
    """The state that the last decision wrote; None without one, or if somebody wrote something else there."""
    found = (document.get("status") or {}).get("rollout")
    try:
        state = None if found is None else RolloutStatus.model_validate(found)
    except ValidationError:
        return None
    # A Timestamp is any text, and no step would ever end that began at none.
    return state if state is not None and seconds_of(state.since) is not None else None


def stable_before(document: Json) -> str | None:
    """The version that serves while a new one is on trial, or after that was taken back; None without one."""
    state = rollout_before(document)
    return state.stable if state is not None and (state.is_open or state.is_withdrawn) else None


@dataclass(frozen=True, slots=True)
class ActiveRollout:
    """A rollout's state, decided from `seen`, and what it means for the Workspace's objects."""

    status: RolloutStatus
    seen: RolloutInput

    @property
    def candidates(self) -> int:
        """The servers of the new version beside those of the Workspace's own Deployment."""
        return split(self.status, self.seen).candidate

    @property
    def own(self) -> int:
        """The most servers that the Workspace's own Deployment has: those of the new version stand in for some."""
        return split(self.status, self.seen).own

    @property
    def serving(self) -> str | None:
        """The id of the version that alone gets requests; None when all ready servers do."""
        found = serving(self.status, self.seen)
        return None if found is None else version_id(found)

    @property
    def wake_after(self) -> float | None:
        """Seconds until time alone moves it on."""
        waits = [wakes_at(self.seen.spec, self.status, self.seen.now)]
        if self.seen.traffic is not None:
            waits.append(drain_wait(self.status, self.seen.traffic, self.seen.now))
        return min((each for each in waits if each is not None), default=None)

    @property
    def new_weight(self) -> int:
        """The percent of requests that a route gives the new version."""
        return new_weight(self.status, self.seen.traffic) if self.seen.traffic else 0

    @property
    def draining(self) -> str | None:
        """The version whose servers stay until they have no requests, once no Gateway sends them any more."""
        traffic = self.seen.traffic
        if traffic is None or not is_settled(self.status, traffic):
            return None
        return draining(self.status, traffic, self.seen.now)

    @property
    def keeps_stable(self) -> bool:
        """Whether the Workspace's own servers stay those of the version before."""
        if self.status.is_open:
            return True
        traffic = self.seen.traffic
        return traffic is not None and holds_stable(self.status, traffic, self.seen.now)


def active_rollout(
    workspace: Workspace, observed: Observed, *, target: Revision, deployed: Revision | None,
    goal: int, movable: bool, is_warm: Callable[[int], bool],
) -> ActiveRollout | None:  # fmt: skip
    """The rollout from the version that is deployed to the target; None if there is none to be slow about.

    `is_warm` tells whether the nodes for a number of the target's servers hold the model. `movable` allows fewer
    servers of the deployed version.
    """
    if (
        workspace.spec.rollout.strategy not in (Strategy.CANARY, Strategy.BLUE_GREEN)
        or deployed is None
    ):
        return None
    before = rollout_before(observed.document)
    known = before if before is not None and before.version == target.name else None
    stable = deployed.name
    if stable == target.name:
        # Once the own Deployment is switched to the new version, only the status still names the one before.
        if known is None or known.phase not in (RolloutPhase.PROMOTING, RolloutPhase.COMPLETED):
            return None
        stable = known.stable
    elif known is None and not _is_served(observed, workspace.name):
        return None  # with no server to compare with, the new version simply starts
    seen = _rollout_input(
        workspace, observed, stable=stable, candidate=target, goal=goal, movable=movable,
        switched=deployed.name == target.name,
    )  # fmt: skip
    # Under another strategy the weight that it had may be none.
    # The state first, without `warm`: it says how many servers there are to be nodes for.
    state = refitted(seen.spec, known, seen.now) if known else advance(seen, None)
    count = split(state, seen).candidate
    seen = replace(seen, warm=is_warm(max(1, count)))
    return ActiveRollout(advance(seen, known), seen)


def commands(document: Json) -> Commands:
    """What people ask of the rollout by annotations."""
    found: Mapping[str, str] = document["metadata"].get("annotations") or {}
    return Commands(
        pause=found.get(names.PAUSE) == "true",
        resume=found.get(names.RESUME, ""),
        promote=found.get(names.PROMOTE, ""),
        abort=found.get(names.ABORT, ""),
    )


def _rollout_input(
    workspace: Workspace, observed: Observed, *, stable: str, candidate: Revision, goal: int, movable: bool,
    switched: bool,
) -> RolloutInput:  # fmt: skip
    ready = [pod for pod in observed.pods(names.SERVER) if is_ready(pod)]
    new = of_version(ready, candidate.id)
    old = [pod for pod in ready if has_labels(pod, {names.REVISION: version_id(stable)})]
    hindrance = _hindrance(observed, workspace.name, candidate)
    return RolloutInput(
        spec=workspace.spec.rollout,
        stable=stable,
        candidate=candidate.name,
        goal=goal,
        stable_ready=len(old),
        candidate_ready=len(new),
        own_ready=sum(not is_candidate(pod) for pod in new),
        warm=True,
        now=observed.now,
        crowded=hindrance is not None and hindrance.reason is Reason.UNSCHEDULABLE,
        problem=_failure(observed, workspace.name, candidate),
        hindrance=hindrance.message if hindrance else "",
        movable=movable,
        result=observed.analysis,
        probes=observed.probes,
        commands=commands(observed.document),
        traffic=_traffic(workspace, observed, old=old, new=new, switched=switched),
    )


def _traffic(
    workspace: Workspace, observed: Observed, *, old: list[Json], new: list[Json], switched: bool
) -> RoutedTraffic | None:
    """What a route and the servers behind it are like; None without a route."""
    if usable_route(workspace, observed) is None:
        return None
    own, beside = workspace.name, names.candidate(workspace.name)
    moved = [pod for pod in new if not is_candidate(pod)]
    return RoutedTraffic(
        stable=len(reachable(workspace, observed, own, old)),
        candidate=len(reachable(workspace, observed, beside, new)),
        own=len(reachable(workspace, observed, own, moved)),
        settled=settled_weight(workspace, observed),
        asked=asked_candidates(observed, own),
        switched=switched,
        idle=observed.idle,
        drain_seconds=workspace.spec.runtime.drain_seconds,
    )


def asked_candidates(observed: Observed, workspace: str) -> int:
    """The replicas that the new version's own Deployments were given."""
    return asked_of(observed.objects, names.with_on_demand(names.candidate(workspace)))


def _is_served(observed: Observed, workspace: str) -> bool:
    return asked_of(observed.objects, names.with_on_demand(workspace)) > 0


def _servers_of(observed: Observed, version: Revision) -> list[Json]:
    pods = [*observed.pods(names.SERVER), *observed.pods(names.SERVER, ended=True)]
    return of_version(pods, version.id)


def _deployments_of(observed: Observed, workspace: str, version: Revision) -> list[Json]:
    """The new version's own Deployments, without those that still are of a version before."""
    named = names.with_on_demand(names.candidate(workspace))
    found = (observed.find("Deployment", name) for name in named)
    return [each for each in found if each is not None and deployed_version(each) == version.id]


def _hindrance(observed: Observed, workspace: str, version: Revision) -> ServerProblem | None:
    deployments = _deployments_of(observed, workspace, version)
    return worst_problem(_servers_of(observed, version), *deployments, mounts=observed.mounts)


def _failure(observed: Observed, workspace: str, version: Revision) -> str:
    """Why the new version's servers will never be ready; empty while that isn't sure."""
    pods = _servers_of(observed, version)
    for pod in pods:
        restarts = [
            int(each.get("restartCount") or 0)
            for each in (pod.get("status") or {}).get("containerStatuses") or ()
        ]
        found = worst_problem([pod])
        if found is not None and found.reason in _ENDINGS and max(restarts, default=0) >= _RESTARTS:
            return found.message
    deployments = _deployments_of(observed, workspace, version)
    late = worst_problem([], *deployments)
    if late is None or late.reason is not Reason.PROGRESS_DEADLINE:
        return ""
    cause = worst_problem(pods, mounts=observed.mounts)
    # A version that finds no room is no worse for it, nor one that has found some just now.
    if cause is not None and cause.reason is Reason.UNSCHEDULABLE:
        return ""
    limit = int(deployments[0]["spec"].get("progressDeadlineSeconds") or 0)
    if not any(_is_late(pod, limit, observed.now) for pod in pods):
        return ""
    return cause.message if cause is not None else late.message


def _is_late(pod: Json, limit: int, now: str) -> bool:
    """Whether a server isn't ready within a limit in seconds from when it got its node."""
    placed = str(condition(pod, "PodScheduled").get("lastTransitionTime", ""))
    return not is_ready(pod) and (seconds_of(placed) is None or seconds_since(placed, now) >= limit)

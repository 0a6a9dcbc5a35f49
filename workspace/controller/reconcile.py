"""Decides what to do from an observation. Pure: the same decision for the same observation, at any time.

Every call decides everything again. Nothing is kept between calls except in the API server, so a crash between two
writes is just another observation.
"""

from __future__ import annotations

from typing import Any

from modelimage.errors import InvalidInput
from workspace.controller import conditions
from workspace.controller.changes import applies, deletes
from workspace.controller.observation import revisions
from workspace.controller.observation.cluster_state import CachedState, cached_state, nodes_to_warm
from workspace.controller.observation.compare import with_intent
from workspace.controller.observation.objects import (
    SHARED_KINDS,
    deployed_version,
    is_candidate,
    is_owned,
)
from workspace.controller.observation.observed import (
    Annotate,
    Decision,
    Observed,
    Reference,
    reference,
)
from workspace.controller.observation.ownership import owned_by, owned_or_conflicting, permitted
from workspace.controller.observation.revisions import Revision
from workspace.controller.rollouts.desired_version import desired_version
from workspace.controller.rollouts.rollout_view import (
    ActiveRollout,
    active_rollout,
    asked_candidates,
    stable_before,
)
from workspace.controller.rollouts.route_objects import kept_objects, left_version, route_objects
from workspace.controller.rollouts.service_routing import server_ports, service_role, wanted_role
from workspace.controller.rollouts.stand_ins import left_servers, stand_ins
from workspace.controller.servers.group_drain import group_counts
from workspace.controller.servers.prewarm_pods import prewarm_pod
from workspace.controller.servers.replica_goal import (
    is_external,
    is_keda_missing,
    is_scaled_elsewhere,
    replica_goal,
)
from workspace.controller.servers.server_counts import (
    ServerCounts,
    candidate_counts,
    ended_servers,
    pod_marks,
    server_counts,
)
from workspace.controller.servers.server_objects import (
    asked_shares,
    candidate_deployments,
    deployed_shares,
    own_servers,
)
from workspace.controller.servers.shares import Shares, divided, floor, startable
from workspace.controller.servers.spares import spares_of
from workspace.controller.servers.workloads import (
    find_in,
    has_workers,
    is_missing,
    kept_workloads,
    on_demand_beside,
    own_objects,
    own_workload,
)
from workspace.controller.status import error_status, workspace_status
from workspace.document import workspace_of
from workspace.node_demands import on_demand_share
from workspace.render import names
from workspace.render.builder_objects import build_job
from workspace.render.kubernetes import has_activator, surrounding_objects
from workspace.render.routing import Routing, ServerPart
from workspace.schema import Workspace
from workspace.sources import NotBuilt

Json = dict[str, Any]


def reconcile(observed: Observed) -> Decision:
    """Decides about one Workspace. Law: carried out, the next call on what is then observed writes nothing."""
    if observed.document["metadata"].get("deletionTimestamp"):
        return Decision()  # owner references delete its objects
    try:
        workspace = workspace_of(observed.document)
    except InvalidInput as error:
        status = error_status.invalid(observed.document, error, now=observed.now)
        return Decision(status=_changed(observed, status))
    return _Reconciliation(workspace, observed).decide()


class _Reconciliation:
    """The intermediate values of one call, each derived from the observation."""

    def __init__(self, workspace: Workspace, observed: Observed) -> None:
        self.workspace = workspace
        self.observed = observed
        self.kept = revisions.history(
            [each for each in observed.objects if is_owned(each, observed.uid)], workspace.name
        )
        find = find_in(own_objects(observed.objects, observed.uid))
        self.current = own_workload(workspace, find)
        self.beside = on_demand_beside(self.current, workspace, find)
        self.asked = asked_shares(self.current, self.beside)
        beside = names.with_on_demand(names.candidate(workspace.name))
        self.deployed_candidates = deployed_shares(*(find("Deployment", name) for name in beside))
        # The order matters: each of these reads the ones before it.
        self.spec_target = desired_version(workspace, observed, self.kept)
        # Either of the two shows what serves, whatever somebody has deleted.
        self.serving = self.current or self.beside
        self.goal = replica_goal(workspace, observed, self.asked.total if self.serving else None)
        self._states: dict[tuple[str, int], CachedState] = {}
        self.rollout = self._rollout()
        # A version that was taken back is as if it had never been asked for.
        withdrawn = self.rollout is not None and self.rollout.status.is_withdrawn
        self.target = self._deployed() if withdrawn else self.spec_target
        shown = self._target_or_deployed()
        self.cached_state = None if shown is None else self._state_of(shown)
        self.active = self._active()
        self.spares = spares_of(workspace, observed, self.active, self._state_of, goal=self.goal)
        self.allowed = self._allowed()
        self.left_version = left_version(workspace, observed, self.rollout)
        self.counts = self._counts()
        self.stand_ins = stand_ins(
            workspace, observed, self.rollout, goal=self.goal,
            stays=lambda pod: not self.counts.gone.takes(pod),
        )  # fmt: skip
        self.candidate_counts = self._candidate_counts()

    def decide(self) -> Decision:
        wanted, conflicts = owned_or_conflicting(self._wanted(), self.observed)
        deleted = deletes(
            self.observed, keep=self._kept(wanted), superfluous=self._superfluous_versions()
        )
        # Last: the NetworkPolicy and the pre-warm pods are there for those that replace them.
        deleted += ended_servers(self.workspace, self.observed, self.counts)
        # Marks first, for those that choose which pods go when a Deployment gets smaller. They may read them too late.
        actions = permitted([*self._marks(), *applies(self.observed, wanted), *deleted], conflicts)
        status = workspace_status.report(
            workspace_status.ReportInput(
                workspace=self.workspace,
                observed=self.observed,
                target=self.target,
                active=self.active,
                cached_state=self.cached_state,
                goal=self.goal,
                allowed=self.allowed.total,
                conflicts=tuple(f"{each.kind} {each.name}" for each in conflicts),
                keda_missing=is_keda_missing(self.workspace, self.observed),
                spares=self.spares,
                versions=(*self.kept, *self._used()),
                rollout=self.rollout.status if self.rollout else None,
                new_weight=self.rollout.new_weight if self.rollout else 0,
            )
        )
        return Decision(
            actions=tuple(actions),
            status=_changed(self.observed, status),
            ask_registry=self.target is None,
            rollout=self.rollout.status if self.rollout else None,
            draining=self.rollout.draining if self.rollout else None,
            wake_after=self._wake_after(),
            trace=self._trace(),
        )

    def _wake_after(self) -> float | None:
        of_rollout = self.rollout.wake_after if self.rollout else None
        waits = (self.counts.wake_after, self.candidate_counts.wake_after, of_rollout)
        return min((each for each in waits if each is not None), default=None)

    # Versions

    def _trace(self) -> str:
        is_on = self.observed.environment.tracing.is_on
        return revisions.trace_of(self.target, self.workspace, self.observed.uid, traced=is_on)

    def _deployed(self) -> Revision | None:
        """The version that serves now, or did, if somebody deleted what keeps it while a new one is on trial."""
        if self.serving is None:
            stable = stable_before(self.observed.document)
            return next((each for each in self.kept if each.name == stable), None)
        running = deployed_version(self.serving)
        return next((each for each in self.kept if each.id == running), None)

    def _target_or_deployed(self) -> Revision | None:
        return self.target if isinstance(self.target, Revision) else self._deployed()

    def _state_of(self, revision: Revision) -> CachedState:
        """A version's state, computed once: it looks at every node."""
        if revision is self.target:
            return self._state_for(revision, self._new_servers())
        is_open = self.rollout is not None and self.rollout.status.is_open
        return self._state_for(
            revision, self.rollout.own if self.rollout and is_open else self.goal
        )

    def _state_for(self, revision: Revision, replicas: int) -> CachedState:
        if (revision.name, replicas) not in self._states:
            on_demand = floor(self.workspace, revision, replicas)
            found = cached_state(revision, self.observed, replicas=replicas, on_demand=on_demand)
            self._states[revision.name, replicas] = found
        return self._states[revision.name, replicas]

    def _active(self) -> Revision | None:
        """The version to run: the previous one until the desired one is cached, then the desired one."""
        deployed = self._deployed()
        if not isinstance(self.target, Revision):
            return deployed
        if self.rollout is not None and self.rollout.keeps_stable:
            return deployed
        if deployed is not None and is_missing(self.target, self.observed):
            return deployed
        serves = self.asked.total > 0 or (is_external(self.workspace) and self.goal > 0)
        # With no running server to replace, the desired version is active right away.
        if self.serving is None or not serves or (deployed and deployed.name == self.target.name):
            return self.target
        ready_to_roll = self.cached_state is not None and self.cached_state.is_cached
        return self.target if ready_to_roll else deployed

    # A new version beside the one that serves

    def _rollout(self) -> ActiveRollout | None:
        target, deployed = self.spec_target, self._deployed()
        # A LeaderWorkerSet replaces its groups, and is replaced, one by one.
        if not isinstance(target, Revision) or (deployed and deployed.worker is not None):
            return None
        return active_rollout(
            self.workspace, self.observed, target=target, deployed=deployed, goal=self.goal,
            movable=not is_scaled_elsewhere(self.workspace),
            is_warm=lambda count: self._state_for(target, count).is_cached,
        )  # fmt: skip

    def _new_servers(self) -> int:
        """The servers that the target needs nodes for: during a rollout only those beside the Workspace's own."""
        return (
            self.rollout.candidates if self.rollout and self.rollout.status.is_open else self.goal
        )

    def _build_job(self) -> Json:
        where = self.observed.environment
        return build_job(self.workspace, where, uid=self.observed.uid, trace=self._trace())

    def _candidate_counts(self) -> ServerCounts:
        """What the new version's Deployments beside the Workspace's own are asked for."""
        count, target = self.rollout.candidates if self.rollout else 0, self.spec_target
        if not count or self.left_version or self.stand_ins or not isinstance(target, Revision):
            return ServerCounts()
        # More of them start once the nodes that will get them hold the model.
        if not self._state_for(target, count).is_cached:
            count = min(count, asked_candidates(self.observed, self.workspace.name))
        return candidate_counts(
            self.workspace, self.observed, candidate=target, state=self._state_for(target, count), count=count
        )  # fmt: skip

    def _candidate_deployments(self) -> list[Json]:
        if not isinstance(self.spec_target, Revision):
            return []
        return candidate_deployments(
            self.workspace, self.spec_target, self.candidate_counts, self.observed.environment
        )

    # Replicas

    def _allowed(self) -> Shares:
        """The replicas that may run now: at most the warm nodes, but never fewer than already run."""
        if self.active is None:
            return Shares()
        goal = self.goal
        if goal == 0 and self.asked.total > 0 and has_activator(self.workspace):
            # The activator must receive requests before the last server stops.
            role = service_role(self.workspace, self.observed)
            return Shares() if role == names.ACTIVATOR else self.asked
        wanted = divided(goal, floor(self.workspace, self.active, goal))
        deployed = self._deployed()
        runs = deployed is not None and deployed.name == self.active.name
        return startable(self._state_of(self.active), wanted, self.asked if runs else Shares())

    def _counts(self) -> ServerCounts:
        """What the Workspace's own Deployments are asked for."""
        if self.active is None:
            return ServerCounts()
        goal, allowed = self.goal, self.allowed
        if self.active.nodes > 1:
            return group_counts(
                self.observed, active=self.active, state=self._state_of(self.active), workload=self.current, goal=goal,
                allowed=allowed.total,
            )  # fmt: skip
        if is_external(self.workspace):
            # From the start all of them: fewer would never become more.
            begins = self.current is None or left_servers(self.workspace, self.observed)
            allowed = Shares(self.goal if begins else self.asked.total)
        elif self.rollout is not None:
            goal, allowed = min(goal, self.rollout.own), allowed.at_most(self.rollout.own)
        return server_counts(
            self.workspace, self.observed, active=self.active, state=self._state_of(self.active),
            goal=goal, allowed=allowed, before=self.asked,
        )  # fmt: skip

    def _marks(self) -> list[Annotate]:
        return pod_marks(
            self.workspace, self.observed,
            own=self.counts, deployed=deployed_shares(self.current, self.beside),
            candidates=self.candidate_counts, deployed_candidates=self.deployed_candidates,
        )  # fmt: skip

    # Objects

    def _wanted(self) -> list[Json]:
        """Every object in its desired form, except those that must stay unchanged."""
        candidates, environment = self._candidate_deployments(), self.observed.environment
        routing = self._routing(has_candidates=bool(candidates))
        least = self.counts.autoscaler_least
        wanted = surrounding_objects(self.workspace, environment, routing, least=least)
        # Weights before servers: none goes that still has a share of the requests.
        newest = self.active.id if self.active else None
        wanted += route_objects(
            self.workspace, self.observed, self.rollout, routing=routing, newest=newest,
            left=self.left_version,
        )  # fmt: skip
        if is_keda_missing(self.workspace, self.observed):
            wanted = [each for each in wanted if each["kind"] != "ScaledObject"]
        if isinstance(self.target, Revision):
            wanted.append(revisions.to_document(self.workspace, self.target))
            wanted += self._prewarm_pods()
        # Only while the image is missing: once there is a version to run, the Job isn't wanted and is deleted.
        if isinstance(self.target, NotBuilt):
            wanted.append(self._build_job())
        if self.active is not None and not is_missing(self.active, self.observed):
            wanted += own_servers(
                self.workspace, self.active, self.counts, environment, self.current
            )
        wanted += candidates
        wanted += self.spares.objects(self.workspace)
        owned = [owned_by(each, self.observed.document) for each in wanted]
        # A route has others' parts: what was written last time says nothing of it.
        return [each if each["kind"] in SHARED_KINDS else with_intent(each) for each in owned]

    def _routing(self, *, has_candidates: bool) -> Routing:
        """Where requests go. `has_candidates` tells whether a new version is to have servers beside the others."""
        versions = (self._deployed(), self.active)
        has_floor = on_demand_share(self.workspace.spec.resources.provisioning, 1) > 0
        # What an edit, or the end of a rollout, leaves for a while counts as well.
        parts = {
            ServerPart.CANDIDATE: has_candidates
            or any(map(is_candidate, self.observed.pods(names.SERVER))),
            ServerPart.ON_DEMAND: has_floor or self.beside is not None,
            ServerPart.REST: True,
        }
        least = {**self.counts.least_ready, **self.candidate_counts.least_ready}
        return Routing(
            role=wanted_role(self.workspace, self.observed, goal=self.goal),
            ports=server_ports(self.workspace, self.observed, versions),
            uid=self.observed.bound_uid,
            budgets={part: least.get(part) for part, exists in parts.items() if exists},
            version=self.rollout.serving if self.rollout else None,
            nodes=self.active.nodes if self.active else 1,
            workers=has_workers(self.observed, *versions),
        )

    def _prewarm_pods(self) -> list[Json]:
        """For the target's servers, and during a rollout for more servers of the version that serves."""
        wanted = [(self.target, self._new_servers())] if isinstance(self.target, Revision) else []
        if self.rollout is not None and self.rollout.status.is_open and self.active is not None:
            wanted.append((self.active, self.rollout.own))
        # At 0 replicas a Workspace that is scaled keeps one node warm, and one that is stopped none.
        found = [
            (each, node)
            for each, count in wanted
            if count or self.workspace.spec.scale is not None
            for node in nodes_to_warm(self._state_of(each), each, self.observed, replicas=count)
        ]
        found += self.spares.places
        return [prewarm_pod(self.workspace, *each, uid=self.observed.uid) for each in found]

    def _used(self) -> list[Revision]:
        found = (self.target, self.spec_target, self._deployed(), self.active)
        return [each for each in found if isinstance(each, Revision)]

    def _superfluous_versions(self) -> set[str]:
        in_use = {each.name for each in self._used()}
        limit = self.workspace.spec.rollout.history + len(in_use)
        return {each.name for each in revisions.superfluous(self.kept, limit=limit, in_use=in_use)}

    def _kept(self, wanted: list[Json]) -> set[Reference]:
        """The objects that aren't deleted: those that are wanted, and those that are needed as they are."""
        keep = {reference(each) for each in wanted}
        keep |= kept_objects(self.workspace, self.left_version)
        keep |= self.stand_ins
        keep |= kept_workloads(self.workspace, self.observed, self.active, goal=self.goal)
        if not isinstance(self.target, Revision):
            # Pods and Jobs in progress are kept while the registry doesn't say which version is desired.
            unsure = ("Pod",) if isinstance(self.target, NotBuilt) else ("Pod", "Job")
            keep |= {reference(each) for each in self.observed.objects if each["kind"] in unsure}
        return keep


def _changed(observed: Observed, status: Json) -> Json | None:
    """The status, if it differs from the current one."""
    return None if conditions.same(observed.document.get("status") or {}, status) else status

"""The version that a Workspace's spec asks for: one of those that were planned before, or a new one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modelimage.errors import WeightyardError
from workspace.controller.observation import nodes, revisions
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.render.release import ResolvedImages, plan_release, pod_site
from workspace.render.trace_settings import with_tracing
from workspace.schema import Workspace
from workspace.template_spec import not_allowed


def desired_version(
    workspace: Workspace, observed: Observed, kept: Sequence[Revision]
) -> Revision | WeightyardError | None:
    """The one of `kept` with the same spec, else one planned from what the registry answered, or why there is none."""
    # Also of a version that was planned while the operator allowed more.
    refusal = not_allowed(workspace.spec.template, observed.environment.template_fields)
    if refusal is not None:
        return refusal
    name = revisions.revision_name(workspace)
    newest = max((each.number for each in kept if each.name != name), default=0)
    # As it was planned then. Resolved or rendered anew, a moved tag or an upgrade would restart every server.
    for each in kept:
        if each.name == name:
            # A version that returns gets the highest number again, as `rollout history` orders by it.
            return replace(each, number=each.number if each.number > newest else newest + 1)
    resolved = observed.resolved
    if not isinstance(resolved, ResolvedImages):
        return resolved
    tracing, resources = observed.environment.tracing, workspace.spec.resources
    try:
        read_rate = nodes.read_rate(observed.nodes, resources)
        release = plan_release(
            with_tracing(workspace, tracing.servers),
            resolved,
            hardware=nodes.hardware(observed.nodes, resources),
            site_of=pod_site(workspace, read_rate=read_rate),
        )
    except WeightyardError as error:
        return error
    return revisions.new_revision(
        workspace, release, number=newest + 1, uid=observed.uid, traced=tracing.is_on
    )

"""The state of the Job that builds a Workspace's image, as a condition, in the builder's own words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.observation.objects import condition, has_labels
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.pod_problems import worst_problem
from workspace.controller.reasons import Reason
from workspace.render import names
from workspace.render.builder_objects import build_job
from workspace.schema import Workspace
from workspace.sources import NotBuilt

Json = dict[str, Any]

_ERROR = "error: "  # how `weightyard` begins the error that ends it


def build_condition(workspace: Workspace, observed: Observed, target: NotBuilt) -> StatusCondition:
    """The condition for a model whose image is being built: the state of the build Job, in the builder's words."""
    kind = conditions.MODEL_RESOLVED
    wanted = build_job(workspace, observed.environment, uid=observed.uid)
    job = wanted["metadata"]["name"]
    found = observed.find("Job", job) or {}
    if condition(found, "Failed").get("status") == "True":
        why = _last_words(observed, job) or conditions.quoted(
            condition(found, "Failed").get("message", "it failed")
        )
        return StatusCondition(
            kind, False, Reason.BUILD_FAILED,
            f"{target.message}: {why}. Run kubectl logs -l job-name={job} to read its log. In an hour it is built "
            f"again; run kubectl delete job {job} to try at once.",
        )  # fmt: skip
    if condition(found, "Complete").get("status") == "True":
        text = f"{target.message}, although the job {job} succeeded. Run kubectl logs -l job-name={job}."
        return StatusCondition(kind, False, Reason.NOT_BUILT, text)
    problem = worst_problem(_of_job(observed.pods(names.BUILD), job), mounts=observed.mounts)
    if problem is not None:
        return StatusCondition(kind, False, problem.reason, f"{target.message}. {problem.message}")
    words = _last_words(observed, job)
    tried = f", after a try that ended with: {words}" if words else ""
    text = f"{target.message}: the job {job} is running{tried}"
    return StatusCondition(kind, False, Reason.BUILDING, text)


def _of_job(pods: Sequence[Json], job: str) -> list[Json]:
    return [each for each in pods if has_labels(each, {"job-name": job})]


def _last_words(observed: Observed, job: str) -> str:
    """The error and hint with which a Job's last failed pod ended; empty before one has."""
    pods = _of_job(observed.pods(names.BUILD, ended=True), job)
    ends = [
        end
        for pod in pods
        for each in (pod.get("status") or {}).get("containerStatuses") or ()
        if (end := (each.get("state") or {}).get("terminated")) and end.get("exitCode")
    ]
    if not ends:
        return ""
    # A Job's pods have no order; the last to end has the reason that still holds.
    newest = max(ends, key=lambda end: str(end.get("finishedAt", "")))
    why = f"exit code {newest.get('exitCode')} ({newest.get('reason') or 'Error'})"
    return conditions.quoted(_error_lines(newest.get("message", "")), last=True) or why


def _error_lines(log: str) -> str:
    """The lines of a log from the last error on; all of them without one."""
    lines = log.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    return "\n".join(lines[starts[-1] :] if starts else lines).removeprefix(_ERROR)

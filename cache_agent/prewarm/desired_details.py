"""Computes what is told of each desired model beyond its entry in the NodeCache. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cache_agent.api.node_cache import DesiredModelStatus
from cache_agent.node.desired_detail import DesiredDetail, DesiredDetails
from cache_agent.prewarm.report import NodeReportInput
from cache_agent.prewarm.values import Failure, FetchTarget, ModelOutcome

_PENDING = ModelOutcome("Pending")


def desired_details(
    view: NodeReportInput,
    desired: Sequence[DesiredModelStatus],
    missing_seconds: Callable[[str], float | None],
    last_failure: Callable[[FetchTarget], Failure | None],
) -> DesiredDetails:
    """The details of the desired models whose entries are given.

    `missing_seconds`: for how long a model, by its name, hasn't been held. `last_failure`: a target's until it is held.
    """
    targets = {each.name: each.target for each in view.desired_models}
    details = []
    for status in desired:
        outcome = view.outcomes.get(status.name, _PENDING)
        # That of the outcome first: it may be the runtime image's.
        failure = outcome.failure or last_failure(targets[status.name])
        missing = missing_seconds(status.name)
        if failure is not None:
            known = view.known.get(targets[status.name])
            # While it is tried again there is no time at which it would be.
            waits = status.state == "Failed" and not (known is not None and known.asking)
            retry_at = failure.not_before if waits else None
            details.append(DesiredDetail(status, failure.since, failure.times, retry_at))
        else:
            details.append(DesiredDetail(status, 0.0 if missing is None else view.now - missing))
    return DesiredDetails(details, view.refused)

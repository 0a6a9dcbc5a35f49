"""Computes a CachedModel's status from the nodes that should hold it. Pure: agents' reports in, a status out.

Those nodes match the selector and run an agent, that is, have a NodeCache. A report about an older generation counts as
no report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from cache_agent.api.cached_model import CachedModel, NodeFailure, Status
from cache_agent.api.kube_objects import shown_bytes, shown_seconds
from cache_agent.api.node_cache import DesiredModelStatus
from modelimage.errors import WeightyardError
from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.observation.objects import condition_in
from workspace.controller.reasons import News, Reason, reported_reason

Json = dict[str, Any]

READY, PROGRESSING, DEGRADED = "Ready", "Progressing", "Degraded"
_NAMED: Final = 5  # nodes listed in a message
_FAILURES: Final = 16  # nodes listed in a status


class ModelPhase(Enum):
    """The state of the model on one node."""

    READY = "ready"
    WORKING = "working"
    WAITING = "waiting"
    FAILED = "failed"


def status_of(
    model: CachedModel, entries: Mapping[str, DesiredModelStatus | None], *, before: Json, now: str
) -> Json:
    """The whole status. `entries` are the selected nodes' reports of this model; `before` is the current status."""
    # In order: the status has the first few failures only, and must not name others in each pass.
    phases = {node: phase_of(model, entry) for node, entry in sorted(entries.items())}
    count = Counter(phases.values())
    known = {n: e for n, e in entries.items() if e is not None and _is_fresh(model, e)}
    failures = [_failure(node, known[node]) for node, p in phases.items() if p is ModelPhase.FAILED]
    status = Status(
        observed_generation=model.metadata.generation,
        nodes_desired=len(phases),
        nodes_ready=count[ModelPhase.READY],
        nodes_working=count[ModelPhase.WORKING],
        nodes_failed=count[ModelPhase.FAILED],
        held=f"{count[ModelPhase.READY]}/{len(phases)}",
        failures=tuple(failures[:_FAILURES]),
        **_identity(known),
        **_progress(phases, known),
    )
    found = _conditions(phases, failures)
    merged = conditions.merge(
        before.get("conditions") or (), found, generation=model.metadata.generation, now=now
    )
    return {**status.to_document(), "conditions": merged}


def invalid(generation: int, error: WeightyardError, *, before: Json, now: str) -> Json:
    """The status of an invalid document; other fields keep their values."""
    found = [conditions.failed(READY, error)]
    merged = conditions.merge(before.get("conditions") or (), found, generation=generation, now=now)
    return {**before, "observedGeneration": generation, "conditions": merged}


def phase_of(model: CachedModel, entry: DesiredModelStatus | None) -> ModelPhase:
    """A node's phase from its report. With spec.runtimeImage, the image must be present as well."""
    if entry is None or not _is_fresh(model, entry):
        return ModelPhase.WAITING
    if entry.state == "Failed":
        return ModelPhase.FAILED
    if entry.state != "Ready":
        return ModelPhase.WORKING if entry.state in ("Fetching", "Warming") else ModelPhase.WAITING
    # Unsupported counts as ready, or nodes that can't pull images ahead would never be.
    if model.spec.runtime_image is None or entry.runtime_image in ("Present", "Unsupported"):
        return ModelPhase.READY
    return ModelPhase.FAILED if entry.runtime_image == "Failed" else ModelPhase.WORKING


def news(before: Json, after: Json) -> list[News]:
    """The Events for the change from one status to the next."""
    found = []
    # Only transitions, so that an Event isn't repeated with every write.
    if _turned(before, after, READY, "True"):
        found.append(News("Normal", Reason.CACHED, _message(after, READY)))
    if _turned(before, after, DEGRADED, "True"):
        reason = reported_reason(condition_in(after, DEGRADED)["reason"])
        found.append(News("Warning", reason, _message(after, DEGRADED)))
    return found


def _is_fresh(model: CachedModel, entry: DesiredModelStatus) -> bool:
    # A CachedModel that was deleted and created again starts at generation 1: only the uid tells
    # them apart.
    another = entry.uid and model.metadata.uid and entry.uid != model.metadata.uid
    return not another and entry.observed_generation >= model.metadata.generation


def _failure(node: str, entry: DesiredModelStatus) -> NodeFailure:
    image = entry.state == "Ready"
    return NodeFailure(
        node=node,
        reason=entry.reason
        or (Reason.RUNTIME_IMAGE_FAILED.value if image else Reason.FAILED.value),
        message=entry.message
        or ("the runtime image can't be pulled" if image else "see the agent's log"),
    )


def _identity(known: Mapping[str, DesiredModelStatus]) -> dict[str, Any]:
    """The resolved image that most nodes report: a moving tag may resolve differently for a while."""
    named = Counter(
        (e.model_key, e.image, e.variant) for e in known.values() if e.model_key is not None
    )
    if not named:
        return {}
    # Ties are broken by text, or the status would alternate between passes.
    (key, image, variant), _ = max(named.items(), key=lambda each: (each[1], str(each[0])))
    return {"model_key": key, "image": image, "variant": variant}


def _progress(
    phases: Mapping[str, ModelPhase], known: Mapping[str, DesiredModelStatus]
) -> dict[str, Any]:
    """Bytes of all nodes together, and the time until the slowest is done."""
    total = max((entry.bytes_total or 0 for entry in known.values()), default=0)
    ready = {node for node, phase in phases.items() if phase is ModelPhase.READY}
    others = [entry for node, entry in known.items() if node not in ready]
    done = len(ready) * total + sum(min(entry.bytes_done, total) for entry in others)
    share = done / (total * len(phases)) if total else len(ready) / max(1, len(phases))
    complete = bool(phases) and len(ready) == len(phases)
    left = [entry.seconds_left for entry in others]
    is_told = len(others) == len(phases) - len(ready) and None not in left
    verified = [known[node].verified_at for node in ready]
    # 100 only when every node is ready: rounding must not announce it early.
    percent = 100 if complete else min(99, int(share * 100))
    longest = max(map(int, filter(None, left)), default=None) if is_told else None
    seconds = 0 if complete else longest
    return {
        "bytes_total": total or None,
        "percent": percent,
        "bytes_per_second": sum(entry.bytes_per_second for entry in others),
        "seconds_left": seconds,
        "size": shown_bytes(total) if total else None,
        "progress": f"{percent}%",
        "time_left": shown_seconds(seconds) if seconds else None,
        "verified_at": min(filter(None, verified), default=None),
    }


def _conditions(
    phases: Mapping[str, ModelPhase], failures: Sequence[NodeFailure]
) -> list[StatusCondition]:
    busy = [node for node, p in phases.items() if p in (ModelPhase.WORKING, ModelPhase.WAITING)]
    if busy:
        verb = "node doesn't" if len(busy) == 1 else "nodes don't"
        text = f"{len(busy)} {verb} hold it yet: {_some(busy)}."
        progressing = StatusCondition(PROGRESSING, True, Reason.FETCHING, text)
    else:
        progressing = StatusCondition(PROGRESSING, False, Reason.AT_REST, "No node is fetching it.")
    return [_ready(phases, failures), progressing, _degraded(failures)]


def _ready(phases: Mapping[str, ModelPhase], failures: Sequence[NodeFailure]) -> StatusCondition:
    if not phases:
        return StatusCondition(
            READY, False, Reason.NO_NODE,
            "No node with an agent has the labels of spec.nodeSelector. Correct it, or start agents there.",
        )  # fmt: skip
    held = sum(phase is ModelPhase.READY for phase in phases.values())
    if held == len(phases):
        whole = "The one node holds" if held == 1 else f"All {held} nodes hold"
        return StatusCondition(READY, True, Reason.CACHED, f"{whole} it, verified.")
    share = "The one node doesn't hold it."
    if len(phases) > 1:
        share = f"{held} of {len(phases)} nodes {'holds' if held == 1 else 'hold'} it."
    if failures:
        first = failures[0]
        reason, text = reported_reason(first.reason), f"{share} {_told(first)}"
        return StatusCondition(READY, False, reason, text)
    working = any(phase is ModelPhase.WORKING for phase in phases.values())
    reason = Reason.FETCHING if working else Reason.WAITING
    doing = (
        "It is being fetched."
        if working
        else "None has begun: `kubectl describe nodecaches` says why."
    )
    return StatusCondition(READY, False, reason, f"{share} {doing}")


def _degraded(failures: Sequence[NodeFailure]) -> StatusCondition:
    if not failures:
        return StatusCondition(DEGRADED, False, Reason.NO_FAILURE, "No node failed.")
    text = f"{_told(failures[0])} Nodes that failed: {_some([each.node for each in failures])}."
    return StatusCondition(DEGRADED, True, reported_reason(failures[0].reason), text)


def _told(failure: NodeFailure) -> str:
    # Agents of other versions have reasons that the conditions don't know.
    known = reported_reason(failure.reason) is not Reason.FAILED
    kind = "" if known or failure.reason == Reason.FAILED.value else f"{failure.reason}: "
    return f"{failure.node}: {kind}{failure.message.rstrip('.')}."


def _some(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return ", ".join(nodes[:_NAMED]) + more


def _message(status: Json, kind: str) -> str:
    return str(condition_in(status, kind)["message"])


def _turned(before: Json, after: Json, kind: str, to: str) -> bool:
    was, now = condition_in(before, kind).get("status"), condition_in(after, kind).get("status")
    return now == to and was != to

"""Computes the status of this node's NodeCache. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from cache_agent.api.cached_model import Tier
from cache_agent.api.kube_objects import Condition, shown_bytes, timestamp
from cache_agent.api.node_cache import (
    DesiredModelStatus,
    Held,
    NextVictim,
    NodeCacheStatus,
    NodeFacts,
    Space,
)
from cache_agent.api.node_reasons import NodeReason
from cache_agent.node.desired_detail import RefusedDocument
from cache_agent.prewarm.values import (
    DesiredModel,
    FetchTarget,
    Inventory,
    ModelOutcome,
    RuntimeImage,
    TargetState,
)
from cache_agent.store.policy import Candidate
from cache_agent.store.values import StoredModel
from modelimage.digest import Digest


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """The progress of a fetch: `done` of `total` bytes, at `rate` bytes per second. `sources`: tier and name.

    `seconds_left`: None if that can't be told. `stands_still`: bytes came before, and none has for a while.
    """

    done: int
    total: int
    rate: float
    sources: tuple[str, ...] = ()
    seconds_left: float | None = None
    stands_still: bool = False


@dataclass(frozen=True, slots=True)
class NodeReportInput:
    """The input of a report. `trouble`: why the desired state is unknown or may be out of date."""

    facts: NodeFacts
    inventory: Inventory
    now: float
    synced: bool
    has_agent: bool = True
    trouble: str = ""
    refused: tuple[RefusedDocument, ...] = ()
    desired_models: Sequence[DesiredModel] = ()
    outcomes: Mapping[str, ModelOutcome] = field(default_factory=dict)
    known: Mapping[FetchTarget, TargetState] = field(default_factory=dict)
    progress: Mapping[FetchTarget, FetchProgress] = field(default_factory=dict)
    runtime: Mapping[str, RuntimeImage] = field(default_factory=dict)
    warm: frozenset[Digest] = frozenset()
    releasing: frozenset[Digest] = frozenset()


_RuntimeState = Literal["Pulling", "Present", "Failed", "Unsupported"]
_PENDING = ModelOutcome("Pending")
_STILL: Final = "no bytes are coming from its sources"


class _Of(NamedTuple):
    """The input of one desired model's entry."""

    desired: DesiredModel
    outcome: ModelOutcome
    model: StoredModel | None
    progress: FetchProgress | None
    tier: Tier | None
    runtime: _RuntimeState | None


Made = dict[str, tuple[_Of, DesiredModelStatus]]


def status(
    view: NodeReportInput, previous: NodeCacheStatus, made: Made | None = None
) -> NodeCacheStatus:
    """The current status. Conditions keep the time at which they last changed.

    `made` caches each desired model's entry between calls: of a thousand, few change from one to the next.
    """
    made = {} if made is None else made
    desired = tuple(
        _desired(view, each, made) for each in sorted(view.desired_models, key=lambda w: w.name)
    )
    for name in made.keys() - {each.name for each in view.desired_models}:
        del made[name]
    held = sum(each.state == "Ready" for each in desired)
    inventory = view.inventory
    return NodeCacheStatus(
        # A NodeCache's spec never changes, so its generation is always 1.
        observed_generation=1,
        conditions=_merged(_conditions(view, desired), previous.conditions, view.now),
        node=view.facts,
        space=Space(
            total=inventory.total,
            used=inventory.used,
            free=inventory.free,
            evictable=inventory.evictable,
            used_shown=shown_bytes(inventory.used),
            free_shown=shown_bytes(inventory.free),
        ),
        held=f"{held}/{len(desired)}",
        desired=desired,
        models=tuple(_held(view, model) for _, model in sorted(inventory.models.items())),
        next_victims=tuple(_victim(each, frees) for each, frees in inventory.next_victims),
    )


def _desired(view: NodeReportInput, desired: DesiredModel, made: Made) -> DesiredModelStatus:
    outcome = view.outcomes.get(desired.name, _PENDING)
    model = view.inventory.models.get(outcome.key) if outcome.key else None
    of = _Of(
        desired, outcome, model, view.progress.get(desired.target), _tier(view, model),
        _runtime(view, desired),
    )  # fmt: skip
    before = made.get(desired.name)
    # Compared by value: an entry is built only when one of its inputs has changed.
    if before is None or before[0] != of:
        before = made[desired.name] = (of, _entry(of))
    return before[1]


def _entry(of: _Of) -> DesiredModelStatus:
    desired, outcome, model, progress = of.desired, of.outcome, of.model, of.progress
    progress = progress or FetchProgress(0, 0, 0.0)
    done, total, message = progress.done, progress.total, outcome.message
    if progress.stands_still and model is None:
        # Without the seconds: a report that changes all the time is written all the time.
        message = message or _STILL
    left = progress.seconds_left if model is None else None
    # A stored model is whole: the progress of a fetch that is just ending may lag behind the inventory.
    if model is not None:
        done = total = model.size
    return DesiredModelStatus(
        name=desired.name,
        uid=desired.uid,
        observed_generation=desired.generation,
        state=outcome.state,
        reason=outcome.reason,
        message=message,
        model_key=str(outcome.key) if outcome.key else None,
        image=model.image if model else desired.target.image,
        variant=model.variant if model else desired.target.variant,
        bytes_done=done,
        bytes_total=total or None,
        bytes_per_second=int(progress.rate),
        seconds_left=None if left is None else int(left),
        sources=progress.sources if model is None else (),
        tier=of.tier,
        pinned=model.pinned if model else False,
        verified_at=timestamp(model.verified) if model and model.verified else None,
        runtime_image=of.runtime,
    )


def _runtime(view: NodeReportInput, desired: DesiredModel) -> _RuntimeState | None:
    if desired.runtime_image is None:
        return None
    known = view.runtime.get(desired.runtime_image, RuntimeImage())
    if not known.supported:
        return "Unsupported"
    if known.present:
        return "Present"
    return "Failed" if known.failure is not None and not known.pulling else "Pulling"


def _held(view: NodeReportInput, model: StoredModel) -> Held:
    return Held(
        key=str(model.key),
        state="Releasing" if model.key in view.releasing else "Ready",
        image=model.image,
        variant=model.variant,
        size=model.size,
        tier=_tier(view, model) or "disk",
        pinned=model.pinned,
        leases=len(model.leases),
        verified_at=timestamp(model.verified) if model.verified else None,
    )


def _victim(candidate: Candidate, frees: int) -> NextVictim:
    took = candidate.fetch_seconds
    return NextVictim(
        key=str(candidate.key),
        frees=frees,
        uses=round(candidate.uses),
        last_used=timestamp(candidate.last_used),
        fetch_seconds=max(1, round(took)) if took else None,
    )


def _tier(view: NodeReportInput, model: StoredModel | None) -> Tier | None:
    if model is None:
        return None
    return "memory" if model.key in view.warm else "disk"


_Fact = tuple[str, bool | None, NodeReason, str]
_NO_AGENT: Final = "No agent runs here: start `weightyard agent`."
_UNKNOWN: Final = "The desired models aren't known yet."
_MOST_PROBLEMS: Final = 4000


def _conditions(view: NodeReportInput, desired: Sequence[DesiredModelStatus]) -> list[_Fact]:
    pinned = {each.name for each in view.desired_models if each.pin}
    late = [each for each in desired if each.name in pinned and each.state != "Ready"]
    cramped = [each.name for each in desired if each.reason == "NoSpace"]
    # An unknown desired state is never ready, or the controller would remove the startup taint too early.
    known = view.synced
    return [
        _ready(view),
        _synced(view),
        _pinned_ready(late) if known else ("PinnedReady", False, NodeReason.NOT_SYNCED, _UNKNOWN),
        _space_sufficient(cramped),
    ]


def _ready(view: NodeReportInput) -> _Fact:
    if not view.has_agent:
        return ("Ready", False, NodeReason.NO_AGENT, _NO_AGENT)
    return ("Ready", True, NodeReason.RUNNING, "The agent runs and its store is sound.")


def _pinned_ready(late: Sequence[DesiredModelStatus]) -> _Fact:
    if not late:
        text = "The node holds every pinned model that selects it."
        return ("PinnedReady", True, NodeReason.HELD, text)
    text = f"Pinned models that the node doesn't hold yet: {_names(each.name for each in late)}."
    return ("PinnedReady", False, NodeReason.MISSING, f"{text} See status.desired.")


def _space_sufficient(cramped: Sequence[str]) -> _Fact:
    if not cramped:
        return ("SpaceSufficient", True, NodeReason.FITS, "All desired models fit.")
    text = f"There is no space for {_names(cramped)}. See status.desired for how much is missing."
    return ("SpaceSufficient", False, NodeReason.NO_SPACE, text)


def _synced(view: NodeReportInput) -> _Fact:
    trouble = view.trouble.rstrip(".")
    if not view.synced:
        text = f"{_UNKNOWN} Reading them is tried again: {trouble}." if trouble else _UNKNOWN
        return ("Synced", False, NodeReason.NOT_SYNCED, text)
    if trouble:
        text = f"The last known desired models stay in force until this works again: {trouble}."
        return ("Synced", False, NodeReason.DISCONNECTED, text)
    if view.refused:
        problems = "; ".join(each.message for each in view.refused)[:_MOST_PROBLEMS].rstrip(".")
        text = f"Documents that can't be used, and must be corrected: {problems}."
        return ("Synced", True, NodeReason.WITH_PROBLEMS, text)
    if not view.has_agent:
        return ("Synced", False, NodeReason.NO_AGENT, _NO_AGENT)
    return ("Synced", True, NodeReason.SYNCED, "The agent follows its desired models.")


def _names(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")


def _merged(
    facts: Sequence[_Fact], previous: Sequence[Condition], now: float
) -> tuple[Condition, ...]:
    before = {each.type: each for each in previous}
    return tuple(_condition(fact, before.get(fact[0]), now) for fact in facts)


def _condition(fact: _Fact, before: Condition | None, now: float) -> Condition:
    kind, holds, reason, message = fact
    status_text: Literal["True", "False", "Unknown"] = (
        "Unknown" if holds is None else "True" if holds else "False"
    )
    same = before is not None and before.status == status_text
    since = before.last_transition_time if same and before is not None else timestamp(now)
    return Condition(
        type=kind,
        status=status_text,
        reason=reason.value,
        message=message,
        observed_generation=1,
        last_transition_time=since,
    )

"""Plans the actions that bring a node to its desired state. Pure and deterministic.

Every call decides everything from its input alone. Repeated plans converge to one without actions. Desired models are
served by priority, then by name. Models that are leased, pinned by hand or desired with at least the same priority are
never evicted for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cache_agent.prewarm.values import (
    Action,
    CachedModelState,
    DesiredModel,
    Evict,
    Fetch,
    FetchTarget,
    ModelOutcome,
    Pin,
    PlannerInput,
    PrewarmPlan,
    PullRuntime,
    ReleasePin,
    Resolve,
    RuntimeImage,
    Stop,
    TargetState,
    Warm,
)
from cache_agent.prewarm.windows import state_at
from cache_agent.store.policy import Candidate, plan_eviction
from modelimage.digest import Digest
from modelimage.errors import InvalidInput

_NOTHING = TargetState()
_NOT_DESIRED = -1


def plan(planner_input: PlannerInput) -> PrewarmPlan:
    """Compute the plan for an input.

    Laws: carried out, repeated plans converge to one without actions; no action evicts a model that is leased, pinned
    by hand, or desired with at least the priority of the one it frees space for; the fetches that are started fit into
    the free space together.
    """
    return _Planning(planner_input).decide()


@dataclass
class _Planning:
    """The working state of one call of `plan`."""

    planner_input: PlannerInput
    actions: list[Action] = field(default_factory=list)
    outcomes: dict[str, ModelOutcome] = field(default_factory=dict)
    wake_at: float | None = None

    def __post_init__(self) -> None:
        self.free = self.planner_input.free
        self.memory = self.planner_input.memory
        self.slots = self.planner_input.fetches
        self.begun: dict[FetchTarget, ModelOutcome] = {}
        self.warming = False
        self.freeing_space = self.planner_input.settling
        self.pulling = any(image.pulling for image in self.planner_input.runtime.values())
        self.order = sorted(self.planner_input.desired_models, key=lambda w: (-w.priority, w.name))
        self.standing = _standing(self.planner_input, self.order)

    def decide(self) -> PrewarmPlan:
        # By priority, because each takes space, memory and slots that the following ones can't have.
        for desired in self.order:
            outcome = self._of_model(desired)
            self.outcomes[desired.name] = self._with_runtime(desired, outcome)
        self._stop_unwanted()
        self._pins()
        return PrewarmPlan(tuple(self.actions), self.outcomes, self.wake_at)

    # Models

    def _of_model(self, desired: DesiredModel) -> ModelOutcome:
        known = self.planner_input.known.get(desired.target, _NOTHING)
        holding = self.planner_input.held.get(known.key) if known.key else None
        if holding is not None:
            return self._held(desired, holding)
        open_now, why_not = self._is_open(desired)
        # Before the window check: another desired model with an open window may have started the shared fetch.
        begun = self.begun.get(desired.target)
        if begun is not None:
            return begun
        if not open_now:
            return ModelOutcome("Waiting", "OutsideWindow", why_not)
        outcome = self._unheld(desired, known)
        self.begun[desired.target] = outcome
        return outcome

    def _held(self, desired: DesiredModel, holding: CachedModelState) -> ModelOutcome:
        key = holding.key
        if desired.tier == "disk" or key in self.planner_input.warm:
            if desired.tier == "memory":
                self.memory -= holding.size
            return ModelOutcome("Ready", key=key)
        if holding.size > self.memory:
            text = "held on disk; there isn't enough memory for the memory tier"
            return ModelOutcome("Ready", "NoMemory", text, key)
        self.memory -= holding.size
        if key in self.planner_input.cold:
            return ModelOutcome(
                "Ready", "NotInMemory", "held on disk; the kernel evicted it from memory", key
            )
        if not self.warming:  # one at a time, because two would compete for the disk
            self.warming = True
            self.actions.append(Warm(key))
        return ModelOutcome("Warming", key=key)

    def _unheld(self, desired: DesiredModel, known: TargetState) -> ModelOutcome:
        failure = known.failure
        if known.running:
            return self._turn(known)
        if failure is not None and self.planner_input.now < failure.not_before:
            self._wake(failure.not_before)
            return ModelOutcome("Failed", failure.reason, failure.message, known.key, failure)
        if known.need is None:
            return self._unanswered(desired, known)
        # While space is being freed for a higher priority, a smaller fetch must not take it; nor may a fetch start
        # while another settles, because `free` still counts that one's space.
        if self.freeing_space or self.slots == 0:
            return _queued(known)
        if known.need > self.free:
            return self._evict_for(desired, known, known.need)
        self.free -= known.need
        self.actions.append(Fetch(desired))
        return self._turn(known)

    def _unanswered(self, desired: DesiredModel, known: TargetState) -> ModelOutcome:
        """Resolve the image first, to learn how much is missing."""
        if not known.asking:
            self.actions.append(Resolve(desired))
        failure = known.failure
        if failure is not None:
            # A retry isn't a success: the state stays Failed until it is one.
            return ModelOutcome("Failed", failure.reason, failure.message, known.key, failure)
        return ModelOutcome("Pending", "Resolving", "resolving the image")

    def _turn(self, known: TargetState) -> ModelOutcome:
        """Take a fetch slot, or queue."""
        if self.slots == 0:
            return _queued(known)
        self.slots -= 1
        return ModelOutcome("Fetching", key=known.key)

    def _evict_for(self, desired: DesiredModel, known: TargetState, need: int) -> ModelOutcome:
        candidates = self._candidates_for(desired)
        eviction = plan_eviction(candidates, need=need - self.free, now=self.planner_input.now)
        # Too little: models would be lost, and this one would wait all the same.
        if eviction.freed >= need - self.free:
            self.actions += [Evict(victim.key) for victim in eviction.victims]
            self.freeing_space = True  # reserves the freed space for this model
            return ModelOutcome(
                "Waiting", "Evicting", "evicting models of lower priority", known.key
            )
        text = (
            f"needs {need} bytes, {self.free} are free and {eviction.freed} could be freed; raise the budget, "
            "remove pins or other CachedModels, or raise its priority"
        )
        return ModelOutcome("Waiting", "NoSpace", text, known.key)

    def _candidates_for(self, desired: DesiredModel) -> list[Candidate]:
        """The models as candidates for eviction: ranked by their priorities, and held where they must stay."""
        s = self.planner_input
        candidates = []
        for key, holding in s.held.items():
            if not holding.evictable:
                continue
            pinned_by_hand = holding.pinned and key not in s.pinned_for
            standing = self.standing.get(key, _NOT_DESIRED)
            in_use = holding.leased or (holding.fresh and standing == _NOT_DESIRED)
            stays = in_use or pinned_by_hand or standing >= desired.priority
            # Models that are being removed come first, or the next plan would choose more than needed.
            rank = _NOT_DESIRED - 1 if key in s.releasing else standing
            # Those that stay count too: a file that they share frees nothing.
            held_by = ("stays",) if stays else ()
            candidates.append(replace(holding.candidate, held_by=held_by, rank=rank))
        return candidates

    def _stop_unwanted(self) -> None:
        """Stop fetches that are outranked, outside their window, or no longer desired."""
        for target, known in self.planner_input.known.items():
            if not known.running:
                continue
            outcome = self.begun.get(target)
            if outcome is None or outcome.state != "Fetching":
                self.actions.append(Stop(target))

    # Pins

    def _pins(self) -> None:
        s = self.planner_input
        keys = (s.known.get(desired.target, _NOTHING).key for desired in self.order if desired.pin)
        wanted = {key for key in keys if key is not None}
        going = {action.key for action in self.actions if isinstance(action, Evict)}
        for key, holding in sorted(s.held.items()):
            if key in wanted and not holding.pinned:
                self.actions.append(Pin(key))
            # Removing a model also removes our pin, so models to be evicted need no Release.
            elif key in s.pinned_for and key not in wanted and key not in going:
                self.actions.append(ReleasePin(key))

    # Runtime images

    def _with_runtime(self, desired: DesiredModel, outcome: ModelOutcome) -> ModelOutcome:
        image = desired.runtime_image
        if image is None:
            return outcome
        known = self.planner_input.runtime.get(image, RuntimeImage())
        if known.present or not known.supported:
            return outcome
        waiting = self._pull_runtime(desired, image, known)
        # The image decides the outcome only once the model is ready: an earlier state must not hide the model's.
        return waiting if outcome.state == "Ready" else outcome

    def _pull_runtime(self, desired: DesiredModel, image: str, known: RuntimeImage) -> ModelOutcome:
        key = self.planner_input.known.get(desired.target, _NOTHING).key
        failure = known.failure
        if known.pulling:
            return ModelOutcome(
                "Fetching", "PullingRuntimeImage", f"the container runtime is pulling {image}", key
            )
        if failure is not None and self.planner_input.now < failure.not_before:
            self._wake(failure.not_before)
            message = f"{image}: {failure.message}"
            return ModelOutcome("Failed", failure.reason, message, key, failure)
        open_now, why_not = self._is_open(desired)
        if not open_now:
            return ModelOutcome("Waiting", "OutsideWindow", why_not, key)
        if not self.pulling:
            self.pulling = True
            self.actions.append(PullRuntime(image, desired.pull_secret))
        return ModelOutcome(
            "Fetching", "PullingRuntimeImage", f"the container runtime is pulling {image}", key
        )

    # Time

    def _is_open(self, desired: DesiredModel) -> tuple[bool, str]:
        if desired.window is None:
            return True, ""
        try:
            is_open, changes = state_at(desired.window, self.planner_input.now)
        except InvalidInput as error:
            return False, f"{error.message}. {error.hint}"
        self._wake(changes)
        window = desired.window
        return is_open, f"its window opens at {window.start} {window.time_zone}"

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def _queued(known: TargetState) -> ModelOutcome:
    return ModelOutcome("Waiting", "Queued", "other models are fetched first", known.key)


def _standing(planner_input: PlannerInput, order: Sequence[DesiredModel]) -> dict[Digest, int]:
    """Each held model's rank: the highest priority of its desired models; a pin (100) is above all of them (0-99)."""
    standing: dict[Digest, int] = {}
    for desired in order:
        key = planner_input.known.get(desired.target, _NOTHING).key
        if key is not None:
            rank = 100 if desired.pin else desired.priority
            standing[key] = max(standing.get(key, -1), rank)
    return standing

"""What to do so that this node holds what is wanted: pure, the same plan for the same situation, at any time.

Every call decides everything anew from what is so. Carried out, plans reach a point where nothing is left to do.
Wishes are served by priority, then by name. Nothing leased, nothing pinned by hand and nothing wanted as much is ever
evicted for a wish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cache_agent.wanted.values import (
    Action,
    Ask,
    Evict,
    Fetch,
    Holding,
    Known,
    Pin,
    Plan,
    PullRuntime,
    Release,
    RuntimeImage,
    Situation,
    Stop,
    Target,
    Verdict,
    Warm,
    Wish,
)
from cache_agent.wanted.windows import state_at
from modelimage.digest import Digest
from modelimage.errors import InvalidInput

_NOTHING = Known()
_UNWANTED = -1


def plan(situation: Situation) -> Plan:
    """The plan for a situation.

    Laws: carried out, repeated plans come to one without actions; no action evicts what is leased, pinned by hand, or
    wanted with at least the priority of what it makes room for; fetches begun fit into the free space together.
    """
    return _Planning(situation).decide()


@dataclass
class _Planning:
    """One call's working."""

    situation: Situation
    actions: list[Action] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    wake_at: float | None = None

    def __post_init__(self) -> None:
        self.free = self.situation.free
        self.memory = self.situation.memory
        self.slots = self.situation.fetches
        self.begun: dict[Target, Verdict] = {}
        self.warming = False
        self.making_room = self.situation.settling
        self.pulling = any(image.pulling for image in self.situation.runtime.values())
        self.order = sorted(self.situation.wishes, key=lambda w: (-w.priority, w.name))
        self.standing = _standing(self.situation, self.order)

    def decide(self) -> Plan:
        for wish in self.order:
            verdict = self._of_model(wish)
            self.verdicts[wish.name] = self._with_runtime(wish, verdict)
        self._stop_unwanted()
        self._pins()
        return Plan(tuple(self.actions), self.verdicts, self.wake_at)

    # Models

    def _of_model(self, wish: Wish) -> Verdict:
        known = self.situation.known.get(wish.target, _NOTHING)
        holding = self.situation.held.get(known.key) if known.key else None
        if holding is not None:
            return self._held(wish, holding)
        open_now, why_not = self._is_open(wish)
        begun = self.begun.get(wish.target)
        if begun is not None:
            return begun
        if not open_now:
            return Verdict("Waiting", "OutsideWindow", why_not)
        verdict = self._unheld(wish, known)
        self.begun[wish.target] = verdict
        return verdict

    def _held(self, wish: Wish, holding: Holding) -> Verdict:
        key = holding.key
        if wish.tier == "disk" or key in self.situation.warm:
            if wish.tier == "memory":
                self.memory -= holding.size
            return Verdict("Ready", key=key)
        if holding.size > self.memory:
            text = "held on the disk; there isn't enough memory to keep it there as well"
            return Verdict("Ready", "NoMemory", text, key)
        self.memory -= holding.size
        if key in self.situation.cold:
            return Verdict(
                "Ready", "NotInMemory", "held on the disk; it didn't stay in memory", key
            )
        if not self.warming:  # one at a time: two would compete for the disk
            self.warming = True
            self.actions.append(Warm(key))
        return Verdict("Warming", key=key)

    def _unheld(self, wish: Wish, known: Known) -> Verdict:
        failure = known.failure
        if known.running:
            return self._turn(known)
        if failure is not None and self.situation.now < failure.not_before:
            self._wake(failure.not_before)
            return Verdict("Failed", failure.reason, failure.message, known.key)
        if known.need is None:
            return self._unanswered(wish, known)
        if self.making_room or self.slots == 0:
            return _queued(known)
        if known.need > self.free:
            return self._make_room(wish, known, known.need)
        self.free -= known.need
        self.actions.append(Fetch(wish))
        return self._turn(known)

    def _unanswered(self, wish: Wish, known: Known) -> Verdict:
        """How much is missing has to be asked first."""
        if not known.asking:
            self.actions.append(Ask(wish))
        if known.failure is not None:  # until it goes well, nothing is better than it was
            return Verdict("Failed", known.failure.reason, known.failure.message, known.key)
        return Verdict("Pending", "Resolving", "asking the registry what the image is")

    def _turn(self, known: Known) -> Verdict:
        """One of the fetches that run at once, or a place in the queue."""
        if self.slots == 0:
            return _queued(known)
        self.slots -= 1
        return Verdict("Fetching", key=known.key)

    def _make_room(self, wish: Wish, known: Known, need: int) -> Verdict:
        candidates = self._evictable_for(wish)
        victims = _fewest(candidates, need - self.free)
        if victims:
            self.actions += [Evict(each.key) for each in victims]
            self.making_room = True  # nobody less wanted may take it
            return Verdict("Waiting", "MakingRoom", "less wanted models are making room", known.key)
        could = sum(each.freed for each in candidates)
        text = (
            f"needs {need} bytes, {self.free} are free and {could} could be freed; raise the budget, "
            "take pins or other wishes away, or raise its priority"
        )
        return Verdict("Waiting", "NoSpace", text, known.key)

    def _evictable_for(self, wish: Wish) -> list[Holding]:
        """What may go for a wish, first to go first."""
        s = self.situation
        free_to_go: list[tuple[tuple[int, int, float, Digest], Holding]] = []
        for key, holding in s.held.items():
            pinned_by_hand = holding.pinned and key not in s.pinned_for
            standing = self.standing.get(key, _UNWANTED)
            in_use = holding.leased or (holding.fresh and standing == _UNWANTED)
            if in_use or pinned_by_hand or standing >= wish.priority or not holding.freed:
                continue
            rank = (0 if key in s.releasing else 1, standing, holding.value, key)
            free_to_go.append((rank, holding))
        return [holding for _, holding in sorted(free_to_go, key=lambda each: each[0])]

    def _stop_unwanted(self) -> None:
        """Fetches that may not go on: outranked, out of their window, or wanted by nobody now."""
        for target, known in self.situation.known.items():
            if not known.running:
                continue
            verdict = self.begun.get(target)
            if verdict is None or verdict.state != "Fetching":
                self.actions.append(Stop(target))

    # Pins

    def _pins(self) -> None:
        s = self.situation
        keys = (s.known.get(wish.target, _NOTHING).key for wish in self.order if wish.pin)
        wanted = {key for key in keys if key is not None}
        going = {action.key for action in self.actions if isinstance(action, Evict)}
        for key, holding in sorted(s.held.items()):
            if key in wanted and not holding.pinned:
                self.actions.append(Pin(key))
            elif key in s.pinned_for and key not in wanted and key not in going:
                self.actions.append(Release(key))

    # Runtime images

    def _with_runtime(self, wish: Wish, verdict: Verdict) -> Verdict:
        image = wish.runtime_image
        if image is None:
            return verdict
        known = self.situation.runtime.get(image, RuntimeImage())
        if known.present or not known.supported:
            return verdict
        waiting = self._pull_runtime(wish, image, known)
        return waiting if verdict.state == "Ready" else verdict

    def _pull_runtime(self, wish: Wish, image: str, known: RuntimeImage) -> Verdict:
        key = self.situation.known.get(wish.target, _NOTHING).key
        failure = known.failure
        if known.pulling:
            return Verdict("Fetching", "PullingRuntimeImage", f"the runtime pulls {image}", key)
        if failure is not None and self.situation.now < failure.not_before:
            self._wake(failure.not_before)
            return Verdict("Failed", failure.reason, f"{image}: {failure.message}", key)
        open_now, why_not = self._is_open(wish)
        if not open_now:
            return Verdict("Waiting", "OutsideWindow", why_not, key)
        if not self.pulling:
            self.pulling = True
            self.actions.append(PullRuntime(image, wish.pull_secret))
        return Verdict("Fetching", "PullingRuntimeImage", f"the runtime pulls {image}", key)

    # Time

    def _is_open(self, wish: Wish) -> tuple[bool, str]:
        if wish.window is None:
            return True, ""
        try:
            is_open, changes = state_at(wish.window, self.situation.now)
        except InvalidInput as error:
            return False, f"{error.message}. {error.hint}"
        self._wake(changes)
        window = wish.window
        return is_open, f"its window opens at {window.start} {window.time_zone}"

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)


def _queued(known: Known) -> Verdict:
    return Verdict("Waiting", "Queued", "what is wanted more is fetched first", known.key)


def _standing(situation: Situation, order: Sequence[Wish]) -> dict[Digest, int]:
    """How much each held model is wanted: the highest priority of its wishes; a pin is beyond every priority."""
    standing: dict[Digest, int] = {}
    for wish in order:
        key = situation.known.get(wish.target, _NOTHING).key
        if key is not None:
            rank = 100 if wish.pin else wish.priority
            standing[key] = max(standing.get(key, -1), rank)
    return standing


def _fewest(candidates: Sequence[Holding], need: int) -> list[Holding]:
    """The first that together free `need`, less those that turn out not to be needed; none if all aren't enough."""
    chosen: list[Holding] = []
    for each in candidates:
        if _freed(chosen) >= need:
            break
        chosen.append(each)
    if _freed(chosen) < need:
        return []
    for each in list(chosen):
        if _freed(chosen) - each.freed >= need:
            chosen.remove(each)
    return chosen


def _freed(holdings: Iterable[Holding]) -> int:
    return sum(each.freed for each in holdings)

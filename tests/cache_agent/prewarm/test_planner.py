"""The planner's laws, on made-up nodes: plans come to rest, what must stay stays, space is never overdrawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.cached_model import Window
from cache_agent.prewarm.planner import plan
from cache_agent.prewarm.values import (
    CachedModelState,
    DesiredModel,
    Evict,
    Failure,
    Fetch,
    FetchTarget,
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
from cache_agent.store.policy import Candidate, evictable, plan_eviction
from modelimage.digest import Digest

NOON = 1_800_014_400.0  # Friday 2027-01-15 12:00 UTC
MODELS = [f"m{number}" for number in range(6)]


def key_of(image: str) -> Digest:
    return Digest.of(image.encode())


def size_of(image: str) -> int:
    return 10 + 7 * int(image[1:])


def holding(image: str, *, pinned: bool = False, leased: bool = False) -> CachedModelState:
    """A stored model of one file that no other model has."""
    key = key_of(image)
    return CachedModelState(
        Candidate(key, image, {key: size_of(image)}, NOON, 1.0, 10.0), pinned=pinned, leased=leased
    )


@dataclass
class ModelNode:
    """A node that carries plans out at once. `budget` bytes of disk; sizes are those of `size_of`."""

    budget: int
    desired_models: tuple[DesiredModel, ...]
    held: dict[Digest, CachedModelState] = field(default_factory=dict)
    known: dict[FetchTarget, TargetState] = field(default_factory=dict)
    pinned_for: frozenset[Digest] = frozenset()
    warm: frozenset[Digest] = frozenset()
    runtime: dict[str, RuntimeImage] = field(default_factory=dict)
    now: float = NOON

    def planner_input(self) -> PlannerInput:
        return PlannerInput(
            desired_models=self.desired_models, now=self.now, free=self.free, memory=40, known=self.known,
            held=self.held, runtime=self.runtime, pinned_for=self.pinned_for, warm=self.warm,
        )  # fmt: skip

    @property
    def free(self) -> int:
        return self.budget - sum(each.size for each in self.held.values())

    def add(self, image: str, *, pinned: bool = False, leased: bool = False) -> None:
        key, size = key_of(image), size_of(image)
        if size <= self.free:
            self.held[key] = holding(image, pinned=pinned, leased=leased)
            self.known[FetchTarget(image, None)] = TargetState(key, 0)

    def carry_out(self, made: PrewarmPlan) -> None:
        for action in made.actions:
            match action:
                case Resolve(desired):
                    self.known[desired.target] = TargetState(
                        key_of(desired.target.image), size_of(desired.target.image)
                    )
                case Fetch(desired):
                    self.add(desired.target.image)
                    assert key_of(desired.target.image) in self.held, "it didn't fit"
                case Evict(key):
                    gone = self.held.pop(key)
                    assert not gone.leased
                    assert not gone.pinned or key in self.pinned_for
                    for target, known in self.known.items():
                        if known.key == key:
                            self.known[target] = TargetState(key, size_of(target.image))
                case Pin(key):
                    self.held[key] = replace(self.held[key], pinned=True)
                    self.pinned_for |= {key}
                case ReleasePin(key):
                    self.held[key] = replace(self.held[key], pinned=False)
                    self.pinned_for -= {key}
                case Warm(key):
                    self.warm |= {key}
                case PullRuntime(image, _):
                    self.runtime[image] = RuntimeImage(present=True)
                case Stop(_):
                    raise AssertionError("nothing runs on between plans")

    def settle(self) -> PrewarmPlan:
        """Plan and carry out until nothing is left to do."""
        for _ in range(50):
            made = plan(self.planner_input())
            if not made.actions:
                return made
            self.carry_out(made)
            assert self.free >= 0
        raise AssertionError(f"plans don't come to rest: {made.actions}")


DESIRED_MODELS = st.lists(
    st.builds(
        DesiredModel,
        name=st.sampled_from("abcdefgh"),
        target=st.sampled_from([FetchTarget(image, None) for image in MODELS]),
        tier=st.sampled_from(["disk", "memory"]),
        pin=st.booleans(),
        priority=st.sampled_from([0, 50, 99]),
        runtime_image=st.sampled_from([None, "vllm"]),
    ),
    unique_by=lambda desired: desired.name,
    max_size=8,
).map(tuple)
HELD = st.dictionaries(st.sampled_from(MODELS), st.tuples(st.booleans(), st.booleans()), max_size=6)


def a_node(
    budget: int, desired_models: tuple[DesiredModel, ...], held: dict[str, tuple[bool, bool]]
) -> ModelNode:
    node = ModelNode(budget, desired_models)
    for image, (pinned, leased) in held.items():
        node.add(image, pinned=pinned, leased=leased)
    return node


@given(st.integers(0, 160), DESIRED_MODELS, HELD)
def test_plans_come_to_rest_and_keep_what_must_stay(
    budget: int, desired_models: tuple[DesiredModel, ...], held: dict[str, tuple[bool, bool]]
) -> None:
    node = a_node(budget, desired_models, held)
    must_stay = {k for k, h in node.held.items() if h.leased or h.pinned}
    made = node.settle()
    assert must_stay <= set(node.held)
    assert set(made.outcomes) == {desired.name for desired in desired_models}
    assert all(v.state in ("Ready", "Waiting") for v in made.outcomes.values())


@given(st.integers(0, 160), DESIRED_MODELS, HELD)
def test_at_rest_nothing_less_wanted_holds_the_room_that_a_wish_needs(
    budget: int, desired_models: tuple[DesiredModel, ...], held: dict[str, tuple[bool, bool]]
) -> None:
    node = a_node(budget, desired_models, held)
    made = node.settle()
    rank = {desired.name: desired.priority for desired in desired_models}
    for desired in desired_models:
        if made.outcomes[desired.name].state == "Ready":
            continue
        assert made.outcomes[desired.name].reason == "NoSpace"
        yields = [
            h.size
            for key, h in node.held.items()
            if not h.leased
            and not h.pinned
            and all(
                rank[o.name] < desired.priority
                for o in desired_models
                if key_of(o.target.image) == key
            )
        ]
        assert node.free + sum(yields) < size_of(desired.target.image)


@given(st.integers(0, 160), DESIRED_MODELS, HELD)
def test_what_is_taken_away_leaves_its_pin_but_not_its_bytes(
    budget: int, desired_models: tuple[DesiredModel, ...], held: dict[str, tuple[bool, bool]]
) -> None:
    node = a_node(budget, desired_models, held)
    by_hand = {key for key, holding in node.held.items() if holding.pinned}
    node.settle()
    before = set(node.held)
    node.desired_models = ()
    node.settle()
    assert set(node.held) == before
    assert {key for key, holding in node.held.items() if holding.pinned} == by_hand


def a_desired_model(image: str = "m1", **options: object) -> DesiredModel:
    return replace(DesiredModel(str(options.pop("name", "a")), FetchTarget(image, None)), **options)  # type: ignore[arg-type]


def running(*images: str) -> dict[FetchTarget, TargetState]:
    return {
        FetchTarget(image, None): TargetState(key_of(image), 5, running=True) for image in images
    }


def test_a_more_wanted_model_takes_the_turn_of_one_that_is_being_fetched() -> None:
    desired_models = (
        a_desired_model("m1", name="low", priority=1),
        a_desired_model("m2", name="high", priority=90),
    )
    known = {**running("m1"), FetchTarget("m2", None): TargetState(key_of("m2"), 5)}
    made = plan(PlannerInput(desired_models, NOON, free=100, fetches=1, known=known))
    assert made.actions == (Fetch(desired_models[1]), Stop(FetchTarget("m1", None)))
    assert made.outcomes["low"].reason == "Queued"


def test_a_fetch_stops_when_its_window_closes_and_goes_on_when_it_opens() -> None:
    desired = a_desired_model(window=Window(start="22:00", end="06:00"))
    planner_input = PlannerInput((desired,), NOON, free=100, known=running("m1"))
    made = plan(planner_input)
    assert made.actions == (Stop(desired.target),)
    assert made.outcomes["a"].reason == "OutsideWindow"
    assert made.wake_at == NOON + 10 * 3600
    later = replace(
        planner_input, now=made.wake_at, known={desired.target: TargetState(key_of("m1"), 5)}
    )
    assert plan(later).actions == (Fetch(desired),)


def test_what_nobody_wants_any_more_stops() -> None:
    assert plan(PlannerInput((), NOON, free=1, known=running("m1"))).actions == (
        Stop(FetchTarget("m1", None)),
    )


def test_a_failure_is_told_and_tried_again_at_its_time() -> None:
    failed = TargetState(need=5, failure=Failure("Unreachable", "no route", NOON + 5))
    planner_input = PlannerInput(
        (a_desired_model(),), NOON, free=100, known={FetchTarget("m1", None): failed}
    )
    made = plan(planner_input)
    assert (made.actions, made.wake_at) == ((), NOON + 5)
    assert made.outcomes["a"].state == "Failed"
    assert plan(replace(planner_input, now=NOON + 5)).actions == (Fetch(a_desired_model()),)


def test_no_one_takes_the_room_that_is_being_made_for_another() -> None:
    node = ModelNode(
        60, (a_desired_model("m5", name="big", priority=90), a_desired_model("m0", name="small"))
    )
    node.add("m4")
    node.known |= {
        FetchTarget("m5", None): TargetState(key_of("m5"), size_of("m5")),
        FetchTarget("m0", None): TargetState(key_of("m0"), size_of("m0")),
    }
    made = plan(node.planner_input())
    assert made.actions == (Evict(key_of("m4")),)
    assert made.outcomes["big"].reason == "Evicting"


def test_two_wishes_for_one_model_are_one_fetch() -> None:
    desired_models = (a_desired_model(name="a"), a_desired_model(name="b", pin=True))
    known = {FetchTarget("m1", None): TargetState(key_of("m1"), 5)}
    made = plan(PlannerInput(desired_models, NOON, free=100, known=known))
    assert made.actions == (Fetch(desired_models[0]),)
    assert {v.state for v in made.outcomes.values()} == {"Fetching"}


def test_a_wish_without_memory_for_it_is_ready_on_the_disk() -> None:
    key = key_of("m1")
    held = {key: holding("m1")}
    known = {FetchTarget("m1", None): TargetState(key, 0)}
    desired = a_desired_model(tier="memory")
    planner_input = PlannerInput((desired,), NOON, free=0, memory=20, known=known, held=held)
    assert plan(planner_input).actions == (Warm(key),)
    assert plan(replace(planner_input, memory=10)).outcomes["a"].reason == "NoMemory"
    assert plan(replace(planner_input, cold=frozenset({key}))).outcomes["a"].reason == "NotInMemory"
    warm = plan(replace(planner_input, warm=frozenset({key})))
    assert (warm.actions, warm.outcomes["a"].state) == ((), "Ready")


def test_a_wish_is_ready_only_with_its_runtime_image_where_there_is_a_runtime() -> None:
    key = key_of("m1")
    desired = a_desired_model(runtime_image="vllm")
    planner_input = PlannerInput(
        (desired,), NOON, free=0, known={desired.target: TargetState(key, 0)},
        held={key: holding("m1")},
    )  # fmt: skip
    made = plan(planner_input)
    assert made.actions == (PullRuntime("vllm", None),)
    assert made.outcomes["a"].reason == "PullingRuntimeImage"
    for known in (RuntimeImage(present=True), RuntimeImage(supported=False)):
        assert plan(replace(planner_input, runtime={"vllm": known})).outcomes["a"].state == "Ready"


FILES = {Digest.of(b"file %d" % number): 10 + 3 * number for number in range(6)}
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.sampled_from([key_of(image) for image in MODELS]),
        image=st.just("m"),
        files=st.sets(st.sampled_from(sorted(FILES)), min_size=1).map(
            lambda files: {digest: FILES[digest] for digest in files}
        ),
        last_used=st.floats(NOON - 1e8, NOON),
        uses=st.floats(0, 1e3),
        fetch_seconds=st.floats(0, 1e4),
        held_by=st.sampled_from([(), ("pod:a",)]),
    ),
    unique_by=lambda candidate: candidate.key,
)


@given(CANDIDATES, st.integers(1, 150))
def test_pre_warming_evicts_what_a_pull_would(candidates: list[Candidate], need: int) -> None:
    """Of models that nobody desires, the store's policy decides for both, shared files included."""
    desired = DesiredModel("a", FetchTarget("new", None))
    made = plan(
        PlannerInput(
            (desired,),
            NOON,
            free=0,
            known={desired.target: TargetState(key_of("new"), need)},
            held={
                each.key: CachedModelState(each, leased=bool(each.held_by)) for each in candidates
            },
        )
    )
    evicted = [action.key for action in made.actions if isinstance(action, Evict)]
    eviction = plan_eviction(candidates, need=need, now=NOON)
    enough = evictable(candidates) >= need
    assert evicted == ([victim.key for victim in eviction.victims] if enough else [])


def test_a_lower_priority_is_evicted_before_a_less_valuable_model_of_a_higher_one() -> None:
    node = ModelNode(
        45, (a_desired_model("m1", name="b", priority=60), a_desired_model("m2", name="c"))
    )
    node.add("m1")
    node.add("m2")
    node.held[key_of("m2")] = replace(
        node.held[key_of("m2")],
        candidate=replace(node.held[key_of("m2")].candidate, uses=1e6),
    )
    node.desired_models += (a_desired_model("m0", name="a", priority=90),)
    node.known[FetchTarget("m0", None)] = TargetState(key_of("m0"), size_of("m0"))
    assert plan(node.planner_input()).actions == (Evict(key_of("m2")),)

"""The planner's laws, on made-up nodes: plans come to rest, what must stay stays, space is never overdrawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.cached_model import Window
from cache_agent.wanted.planner import plan
from cache_agent.wanted.values import (
    Ask,
    Evict,
    Failure,
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
    Warm,
    Wish,
)
from modelimage.digest import Digest

NOON = 1_800_014_400.0  # Friday 2027-01-15 12:00 UTC
MODELS = [f"m{number}" for number in range(6)]


def key_of(image: str) -> Digest:
    return Digest.of(image.encode())


def size_of(image: str) -> int:
    return 10 + 7 * int(image[1:])


@dataclass
class ModelNode:
    """A node that carries plans out at once. `budget` bytes of disk; sizes are those of `size_of`."""

    budget: int
    wishes: tuple[Wish, ...]
    held: dict[Digest, Holding] = field(default_factory=dict)
    known: dict[Target, Known] = field(default_factory=dict)
    pinned_for: frozenset[Digest] = frozenset()
    warm: frozenset[Digest] = frozenset()
    runtime: dict[str, RuntimeImage] = field(default_factory=dict)
    now: float = NOON

    def situation(self) -> Situation:
        return Situation(
            wishes=self.wishes, now=self.now, free=self.free, memory=40, known=self.known,
            held=self.held, runtime=self.runtime, pinned_for=self.pinned_for, warm=self.warm,
        )  # fmt: skip

    @property
    def free(self) -> int:
        return self.budget - sum(each.size for each in self.held.values())

    def add(self, image: str, *, pinned: bool = False, leased: bool = False) -> None:
        key, size = key_of(image), size_of(image)
        if size <= self.free:
            self.held[key] = Holding(key, size, size, pinned, leased)
            self.known[Target(image, None)] = Known(key, 0)

    def carry_out(self, made: Plan) -> None:
        for action in made.actions:
            match action:
                case Ask(wish):
                    self.known[wish.target] = Known(
                        key_of(wish.target.image), size_of(wish.target.image)
                    )
                case Fetch(wish):
                    self.add(wish.target.image)
                    assert key_of(wish.target.image) in self.held, "it didn't fit"
                case Evict(key):
                    gone = self.held.pop(key)
                    assert not gone.leased
                    assert not gone.pinned or key in self.pinned_for
                    for target, known in self.known.items():
                        if known.key == key:
                            self.known[target] = Known(key, size_of(target.image))
                case Pin(key):
                    self.held[key] = replace(self.held[key], pinned=True)
                    self.pinned_for |= {key}
                case Release(key):
                    self.held[key] = replace(self.held[key], pinned=False)
                    self.pinned_for -= {key}
                case Warm(key):
                    self.warm |= {key}
                case PullRuntime(image, _):
                    self.runtime[image] = RuntimeImage(present=True)
                case Stop(_):
                    raise AssertionError("nothing runs on between plans")

    def settle(self) -> Plan:
        """Plan and carry out until nothing is left to do."""
        for _ in range(50):
            made = plan(self.situation())
            if not made.actions:
                return made
            self.carry_out(made)
            assert self.free >= 0
        raise AssertionError(f"plans don't come to rest: {made.actions}")


WISHES = st.lists(
    st.builds(
        Wish,
        name=st.sampled_from("abcdefgh"),
        target=st.sampled_from([Target(image, None) for image in MODELS]),
        tier=st.sampled_from(["disk", "memory"]),
        pin=st.booleans(),
        priority=st.sampled_from([0, 50, 99]),
        runtime_image=st.sampled_from([None, "vllm"]),
    ),
    unique_by=lambda wish: wish.name,
    max_size=8,
).map(tuple)
HELD = st.dictionaries(st.sampled_from(MODELS), st.tuples(st.booleans(), st.booleans()), max_size=6)


def a_node(budget: int, wishes: tuple[Wish, ...], held: dict[str, tuple[bool, bool]]) -> ModelNode:
    node = ModelNode(budget, wishes)
    for image, (pinned, leased) in held.items():
        node.add(image, pinned=pinned, leased=leased)
    return node


@given(st.integers(0, 160), WISHES, HELD)
def test_plans_come_to_rest_and_keep_what_must_stay(
    budget: int, wishes: tuple[Wish, ...], held: dict[str, tuple[bool, bool]]
) -> None:
    node = a_node(budget, wishes, held)
    must_stay = {k for k, h in node.held.items() if h.leased or h.pinned}
    made = node.settle()
    assert must_stay <= set(node.held)
    assert set(made.verdicts) == {wish.name for wish in wishes}
    assert all(v.state in ("Ready", "Waiting") for v in made.verdicts.values())


@given(st.integers(0, 160), WISHES, HELD)
def test_at_rest_nothing_less_wanted_holds_the_room_that_a_wish_needs(
    budget: int, wishes: tuple[Wish, ...], held: dict[str, tuple[bool, bool]]
) -> None:
    node = a_node(budget, wishes, held)
    made = node.settle()
    rank = {wish.name: wish.priority for wish in wishes}
    for wish in wishes:
        if made.verdicts[wish.name].state == "Ready":
            continue
        assert made.verdicts[wish.name].reason == "NoSpace"
        yields = [
            h.freed
            for key, h in node.held.items()
            if not h.leased
            and not h.pinned
            and all(rank[o.name] < wish.priority for o in wishes if key_of(o.target.image) == key)
        ]
        assert node.free + sum(yields) < size_of(wish.target.image)


@given(st.integers(0, 160), WISHES, HELD)
def test_what_is_taken_away_leaves_its_pin_but_not_its_bytes(
    budget: int, wishes: tuple[Wish, ...], held: dict[str, tuple[bool, bool]]
) -> None:
    node = a_node(budget, wishes, held)
    by_hand = {key for key, holding in node.held.items() if holding.pinned}
    node.settle()
    before = set(node.held)
    node.wishes = ()
    node.settle()
    assert set(node.held) == before
    assert {key for key, holding in node.held.items() if holding.pinned} == by_hand


def a_wish(image: str = "m1", **options: object) -> Wish:
    return replace(Wish(str(options.pop("name", "a")), Target(image, None)), **options)  # type: ignore[arg-type]


def running(*images: str) -> dict[Target, Known]:
    return {Target(image, None): Known(key_of(image), 5, running=True) for image in images}


def test_a_more_wanted_model_takes_the_turn_of_one_that_is_being_fetched() -> None:
    wishes = (a_wish("m1", name="low", priority=1), a_wish("m2", name="high", priority=90))
    known = {**running("m1"), Target("m2", None): Known(key_of("m2"), 5)}
    made = plan(Situation(wishes, NOON, free=100, fetches=1, known=known))
    assert made.actions == (Fetch(wishes[1]), Stop(Target("m1", None)))
    assert made.verdicts["low"].reason == "Queued"


def test_a_fetch_stops_when_its_window_closes_and_goes_on_when_it_opens() -> None:
    wish = a_wish(window=Window(start="22:00", end="06:00"))
    situation = Situation((wish,), NOON, free=100, known=running("m1"))
    made = plan(situation)
    assert made.actions == (Stop(wish.target),)
    assert made.verdicts["a"].reason == "OutsideWindow"
    assert made.wake_at == NOON + 10 * 3600
    later = replace(situation, now=made.wake_at, known={wish.target: Known(key_of("m1"), 5)})
    assert plan(later).actions == (Fetch(wish),)


def test_what_nobody_wants_any_more_stops() -> None:
    assert plan(Situation((), NOON, free=1, known=running("m1"))).actions == (
        Stop(Target("m1", None)),
    )


def test_a_failure_is_told_and_tried_again_at_its_time() -> None:
    failed = Known(need=5, failure=Failure("Unreachable", "no route", NOON + 5))
    situation = Situation((a_wish(),), NOON, free=100, known={Target("m1", None): failed})
    made = plan(situation)
    assert (made.actions, made.wake_at) == ((), NOON + 5)
    assert made.verdicts["a"].state == "Failed"
    assert plan(replace(situation, now=NOON + 5)).actions == (Fetch(a_wish()),)


def test_no_one_takes_the_room_that_is_being_made_for_another() -> None:
    node = ModelNode(60, (a_wish("m5", name="big", priority=90), a_wish("m0", name="small")))
    node.add("m4")
    node.known |= {
        Target("m5", None): Known(key_of("m5"), size_of("m5")),
        Target("m0", None): Known(key_of("m0"), size_of("m0")),
    }
    made = plan(node.situation())
    assert made.actions == (Evict(key_of("m4")),)
    assert made.verdicts["big"].reason == "MakingRoom"


def test_two_wishes_for_one_model_are_one_fetch() -> None:
    wishes = (a_wish(name="a"), a_wish(name="b", pin=True))
    known = {Target("m1", None): Known(key_of("m1"), 5)}
    made = plan(Situation(wishes, NOON, free=100, known=known))
    assert made.actions == (Fetch(wishes[0]),)
    assert {v.state for v in made.verdicts.values()} == {"Fetching"}


def test_a_wish_without_memory_for_it_is_ready_on_the_disk() -> None:
    key = key_of("m1")
    held = {key: Holding(key, 17, 17)}
    known = {Target("m1", None): Known(key, 0)}
    wish = a_wish(tier="memory")
    situation = Situation((wish,), NOON, free=0, memory=20, known=known, held=held)
    assert plan(situation).actions == (Warm(key),)
    assert plan(replace(situation, memory=10)).verdicts["a"].reason == "NoMemory"
    assert plan(replace(situation, cold=frozenset({key}))).verdicts["a"].reason == "NotInMemory"
    warm = plan(replace(situation, warm=frozenset({key})))
    assert (warm.actions, warm.verdicts["a"].state) == ((), "Ready")


def test_a_wish_is_ready_only_with_its_runtime_image_where_there_is_a_runtime() -> None:
    key = key_of("m1")
    wish = a_wish(runtime_image="vllm")
    situation = Situation(
        (wish,), NOON, free=0, known={wish.target: Known(key, 0)},
        held={key: Holding(key, 17, 17)},
    )  # fmt: skip
    made = plan(situation)
    assert made.actions == (PullRuntime("vllm", None),)
    assert made.verdicts["a"].reason == "PullingRuntimeImage"
    for known in (RuntimeImage(present=True), RuntimeImage(supported=False)):
        assert plan(replace(situation, runtime={"vllm": known})).verdicts["a"].state == "Ready"

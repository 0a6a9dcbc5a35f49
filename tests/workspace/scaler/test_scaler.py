"""The scaler's laws, and what it makes of a day's load in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelimage.errors import RemoteRefused
from workspace.scaler import Load, Policy, Reading, ReplicaTarget, decide, wanted
from workspace.server_metrics import parse_held, parse_reading

POLICY = Policy(least=1, most=8, queue_depth=4, up_window=10, down_window=60)

policies = st.builds(
    lambda least, extra, depth, up, down: Policy(least, max(1, least + extra), depth, up, down),
    st.integers(0, 3), st.integers(0, 6), st.integers(1, 10), st.sampled_from([0, 10]), st.sampled_from([0, 60]),
)  # fmt: skip
readings = st.builds(
    Reading, st.integers(0, 300).map(float), st.integers(0, 50).map(float), st.floats(0, 1)
)
loads = st.builds(
    lambda current, found, missing, held: Load(
        current, min(current, len(found[:current]) + missing), tuple(found[:current]), held
    ),
    st.integers(0, 9), st.lists(readings, max_size=9), st.integers(0, 2), st.integers(0, 40),
)  # fmt: skip
histories = st.lists(st.tuples(st.floats(-100, -0.5), st.integers(0, 9)), max_size=12).map(
    lambda items: tuple(ReplicaTarget(at, replicas) for at, replicas in sorted(items))
)


@given(policies, loads, histories)
def test_within_bounds_and_no_wild_steps(
    policy: Policy, load: Load, history: tuple[ReplicaTarget, ...]
) -> None:
    answer = decide(policy, load, history, 0.0)
    assert policy.least <= answer.replicas <= policy.most
    if policy.least <= load.current <= policy.most:
        assert answer.replicas <= max(1, load.current * 2, policy.least)
        assert answer.replicas >= load.current - 1
    assert answer.reason


@given(policies, loads, histories)
def test_never_below_what_holds_the_work_in_flight(
    policy: Policy, load: Load, history: tuple[ReplicaTarget, ...]
) -> None:
    answer = decide(policy, load, history, 0.0)
    if answer.replicas >= load.current or load.current > policy.most:
        return
    assert load.is_complete
    assert load.waiting == 0
    assert answer.replicas * policy.batch >= load.running
    assert answer.replicas * 0.8 >= sum(each.kv_usage for each in load.readings) - 1e-9
    if answer.replicas == 0:
        assert load.running == 0


@given(policies, loads, histories)
def test_asking_again_changes_nothing(
    policy: Policy, load: Load, history: tuple[ReplicaTarget, ...]
) -> None:
    first = decide(policy, load, history, 0.0)
    again = decide(policy, load, first.history, 0.0)
    assert again == first


@given(policies, loads, histories)
def test_history_stays_short(
    policy: Policy, load: Load, history: tuple[ReplicaTarget, ...]
) -> None:
    answer = decide(policy, load, history, 0.0)
    longest = max(policy.up_window, policy.down_window)
    assert all(-longest <= each.at <= 0 for each in answer.history[1:])


@given(loads, st.integers(1, 20))
@example(Load(1, 1, (Reading(0, 0, kv_usage=1.0),)), 1)
def test_more_waiting_never_wants_less(load: Load, more: int) -> None:
    assert wanted(POLICY, replace(load, held=load.held + more)) >= wanted(POLICY, load)


class Fleet:
    """Replicas in virtual time: each takes `START` seconds, then runs `SLOTS` requests of `SECONDS` each."""

    START, SLOTS, SECONDS = 40, 4, 10

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = 0.0
        self.started: list[float] = [-1000.0] * max(policy.least, 0)
        self.running: list[float] = []  # when each request ends
        self.queue = 0
        self.history: tuple[ReplicaTarget, ...] = ()
        self.counts: list[int] = []
        self.worst_wait = 0

    def second(self, arrivals: int) -> None:
        """One second of arrivals, service and, every two, of scaling."""
        self.now += 1
        self.queue += arrivals
        self.running = [end for end in self.running if end > self.now]
        ready = sum(self.now >= at + self.START for at in self.started)
        free = ready * self.SLOTS - len(self.running)
        take = max(0, min(free, self.queue))
        self.running += [self.now + self.SECONDS] * take
        self.queue -= take
        if self.now % 2 == 0:
            self._scale(ready)
        self.counts.append(len(self.started))
        self.worst_wait = max(self.worst_wait, self.queue)

    def _scale(self, ready: int) -> None:
        shares = [len(self.running) / ready] * ready if ready else []
        found = tuple(
            Reading(share, self.queue / ready, min(1.0, share / self.SLOTS * 0.8))
            for share in shares
        )
        load = Load(len(self.started), ready, found, held=0 if ready else self.queue)
        answer = decide(self.policy, load, self.history, self.now)
        self.history = answer.history
        while len(self.started) < answer.replicas:
            self.started.append(self.now)
        if len(self.started) > answer.replicas:
            least_busy = math.ceil(len(self.running) / max(1, len(self.started)))
            assert len(self.started) > 1 or least_busy == 0
            del self.started[answer.replicas :]


def test_a_burst_grows_the_fleet_and_calm_shrinks_it_one_by_one() -> None:
    fleet = Fleet(POLICY)
    for _ in range(300):
        fleet.second(arrivals=2)
    peak = max(fleet.counts)
    assert 4 <= peak <= 8
    for _ in range(600):
        fleet.second(arrivals=0)
    assert fleet.counts[-1] == 1
    steps = [
        after - before
        for before, after in zip(fleet.counts[300:], fleet.counts[301:], strict=False)
    ]
    assert min(steps) == -1


def test_from_zero_to_one_at_the_first_waiting_request_and_back() -> None:
    fleet = Fleet(replace(POLICY, least=0))
    for _ in range(30):
        fleet.second(arrivals=0)
    assert fleet.counts[-1] == 0
    fleet.second(arrivals=1)
    fleet.second(arrivals=0)
    assert fleet.counts[-1] == 1
    for _ in range(40 + 10 + 60 + 10):
        fleet.second(arrivals=0)
    assert fleet.counts[-1] == 0


@given(st.floats(0.1, 4.9))
def test_windows_pass_whatever_the_rhythm_of_the_readings(period: float) -> None:
    policy = replace(POLICY, least=0, down_window=20)
    idle = Load(current=1, ready=1, readings=(Reading(0, 0, 0),))
    history: tuple[ReplicaTarget, ...] = ()
    now = 0.0
    while now < 40:
        answer = decide(policy, idle, history, now)
        history, now = answer.history, now + period
        if answer.replicas == 0:
            break
    assert 20 <= now <= 20 + 3 * period


def test_steady_load_does_not_flap() -> None:
    fleet = Fleet(POLICY)
    for _ in range(600):
        fleet.second(arrivals=1)
    settled = fleet.counts[300:]
    assert len(set(settled)) == 1
    assert fleet.queue <= POLICY.queue_depth * settled[-1]


def test_a_spike_shorter_than_the_window_adds_nothing() -> None:
    fleet = Fleet(POLICY)
    for _ in range(20):
        fleet.second(arrivals=0)
    fleet.second(arrivals=12)
    for _ in range(7):
        fleet.second(arrivals=0)
    assert set(fleet.counts) == {1}


def test_a_replica_that_cannot_be_read_is_taken_for_busy() -> None:
    load = Load(current=3, ready=3, readings=(Reading(0, 0, 0),) * 2)
    long_ago = tuple(ReplicaTarget(float(at), 1) for at in range(-60, 0))
    assert decide(POLICY, load, long_ago, 0.0).replicas == 3


VLLM_PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="model"} 2.0
vllm:num_requests_running{engine="1",model_name="model"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="model"} 5.0
vllm:num_requests_waiting{engine="1",model_name="model"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="model"} 0.25
"""


def test_vllms_page_is_read_over_all_its_engines() -> None:
    assert parse_reading(VLLM_PAGE) == Reading(running=3.0, waiting=5.0, kv_usage=0.25)


def test_older_and_other_names_are_known() -> None:
    old = VLLM_PAGE.replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    assert parse_reading(old).kv_usage == 0.25
    sglang = "sglang:num_running_reqs 4\nsglang:num_queue_reqs 7\nsglang:token_usage 0.5\n"
    assert parse_reading(sglang) == Reading(4.0, 7.0, 0.5)


@pytest.mark.parametrize(
    "page", ["", "up 1\n", "vllm:num_requests_running 1\n", "vllm:num_requests_running{ 1"]
)
def test_a_page_without_a_queue_is_refused(page: str) -> None:
    with pytest.raises(RemoteRefused):
        parse_reading(page)


@given(st.text())
def test_no_page_breaks_the_reader(page: str) -> None:
    try:
        parse_reading(page)
        parse_held(page)
    except RemoteRefused:
        return


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "1e300"])
def test_a_metric_that_no_server_can_mean_makes_its_page_unusable(value: str) -> None:
    page = f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 0\n"
    with pytest.raises(RemoteRefused, match="can't be read"):
        parse_reading(page)


def test_a_page_of_very_many_lines_is_refused() -> None:
    """Reading each takes the event loop's time, and a megabyte has fifteen thousand."""
    lines = [f'vllm:num_requests_running{{engine="{engine}"}} 1' for engine in range(15_000)]
    page = "\n".join([*lines, "vllm:num_requests_waiting 0", ""])
    with pytest.raises(RemoteRefused, match="15001 lines"):
        parse_reading(page)
    assert parse_reading(page[page.index("\n", 500_000) + 1 :]).running < 5000


def test_a_page_of_long_lines_is_refused() -> None:
    """Labels full of escapes take a second for each megabyte."""
    escaped = "\\\\" * 350
    lines = [f'vllm:num_requests_running{{model_name="{n}{escaped}"}} 1' for n in range(1000)]
    page = "\n".join([*lines, "vllm:num_requests_waiting 0", ""])
    assert len(page) < 1 << 20
    with pytest.raises(RemoteRefused, match="too long"):
        parse_reading(page)

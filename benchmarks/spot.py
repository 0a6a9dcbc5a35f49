"""A day on spot capacity, simulated: how much of it is used, what that costs, and what users notice.

    python -m benchmarks.spot [--seed 1] [--hours 24]
    python -m benchmarks.spot --courses 1000    # instead: the laws of test_spot_life, over random courses

The provisioner is the tests' Karpenter in virtual time; scaler, reconciliation and node signs are the controller's own.
Three policies see the same day:

- load: concurrent requests between 90 and 230 by the time of day, with noise; a server runs 32 at a time;
- shortage: each of three zones has no spot capacity every 8 hours on average, for 45 minutes on average (both
  exponential); half of its spot nodes are taken back within 10 minutes then;
- interruptions: besides, each zone takes a spot node back every 3 hours on average (exponential), with 120 s of notice;
- a new node takes 80 s, the model 60 s, a start 90 s. A spot node costs 0.35 of another.

The queue goal is met while no more than `queueDepth` requests wait for each ready server. Fails when spot with a floor
misses a target: 60 % of the node hours on spot, 99.5 % of the time within the queue goal; or when it loses a request.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from tests.workspace.controller.karpenter import Claim, Delays, ElasticCluster, Market
from tests.workspace.controller.simulation import NAME, NAMESPACE
from tests.workspace.controller.test_spot_life import COURSES, check_courses
from workspace.controller.loops.scaling_loop import Scaler, policy_of
from workspace.controller.observation.objects import asked_of
from workspace.document import workspace_of
from workspace.render import names
from workspace.scaler import Load, Reading

LEAST_SPOT: Final = 0.60
LEAST_AVAILABLE: Final = 0.995
SPOT_PRICE: Final = 0.35
BATCH: Final = 32
QUEUE_DEPTH: Final = 4
TICK: Final = 15  # seconds between two looks at the load
HOUR: Final = 3600
WARM_UP: Final = HOUR  # not counted: all servers start at once
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "spot preferred, 1 on demand": {"spot": "preferred", "onDemandMinimum": 1},
    "on-demand only": {"spot": "never"},
    "spot without fallback": {"spot": "only"},
}


@dataclass(frozen=True, slots=True)
class Event:
    """What a zone's spot market does at a time: `choice`, from 0 to 1, says to which of its nodes."""

    at: float
    what: str
    zone: str
    choice: float = 0.0


@dataclass(slots=True)
class Result:
    """What a policy came to. Times are counted in ticks."""

    ticks: int = 0
    met: int = 0
    spot_hours: float = 0.0
    other_hours: float = 0.0
    interrupted: int = 0
    lost: int = 0
    launches: int = 0

    @property
    def cost(self) -> float:
        return self.other_hours + SPOT_PRICE * self.spot_hours

    @property
    def spot_share(self) -> float:
        return self.spot_hours / (self.spot_hours + self.other_hours)

    @property
    def available(self) -> float:
        return self.met / self.ticks


def main() -> int:
    """Lives the day under each policy and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--courses", type=int)
    given = parser.parse_args()
    if given.courses:
        for part in range(-(-given.courses // COURSES)):
            check_courses(part)
            print(f"{(part + 1) * COURSES} courses, no law broken", flush=True)
        return 0
    began, found = time.monotonic(), {}
    for name, capacity in POLICIES.items():
        found[name] = _Day(given.seed, given.hours, capacity).live()
    whole = found["on-demand only"].cost
    print(f"{given.hours} hours, seed {given.seed}, lived in {time.monotonic() - began:.0f} s")
    print(
        f"{'policy':28} {'on spot':>8} {'goal met':>9} {'cost':>6} {'nodes':>6} {'taken':>6} {'lost':>5}"
    )
    for name, each in found.items():
        print(
            f"{name:28} {each.spot_share:8.1%} {each.available:9.2%} {each.cost / whole:6.2f} {each.launches:6} "
            f"{each.interrupted:6} {each.lost:5}"
        )
    ours = found["spot preferred, 1 on demand"]
    missed = ours.spot_share < LEAST_SPOT or ours.available < LEAST_AVAILABLE or ours.lost > 0
    print(
        f"targets: {LEAST_SPOT:.0%} on spot, {LEAST_AVAILABLE:.1%} met: {'missed' if missed else 'reached'}"
    )
    return int(missed)


def market_events(seed: int, seconds: float, zones: tuple[str, ...]) -> list[Event]:
    """The day of the spot market, the same for every policy."""
    events = []
    for zone in zones:
        drawn = random.Random(f"{seed}/{zone}")  # noqa: S311 - a simulated market
        at = drawn.expovariate(1 / (8 * HOUR))
        while at < seconds:
            events.append(Event(at, "short", zone))
            events += [
                Event(at + drawn.uniform(0, 600), "sweep", zone, drawn.random()) for _ in range(4)
            ]
            at += drawn.expovariate(1 / (45 * 60))
            events.append(Event(at, "back", zone))
            at += drawn.expovariate(1 / (8 * HOUR))
        at = drawn.expovariate(1 / (3 * HOUR))
        while at < seconds:
            events.append(Event(at, "take", zone, drawn.random()))
            at += drawn.expovariate(1 / (3 * HOUR))
    return sorted(events, key=lambda each: each.at)


def demand(seed: int, at: float) -> float:
    """The requests in flight at a time of the day, queued ones included."""
    wave = 160 - 70 * math.cos(2 * math.pi * at / (24 * HOUR))
    noise = random.Random(f"{seed}/{int(at // 300)}").gauss(0, 3)  # noqa: S311 - a simulated load
    return max(0.0, wave + noise)


class _Day:
    """One policy's day."""

    def __init__(self, seed: int, hours: int, capacity: dict[str, Any]) -> None:
        self.seed, self.end = seed, hours * HOUR + WARM_UP
        self.market = Market()
        self.cluster = ElasticCluster(Delays(), self.market)
        self.result = Result()
        self.cluster.wanted = 4
        self.cluster.create_workspace(
            resources={"gpu": "L4", "provisioning": {"by": "karpenter", "capacity": capacity}},
            runtime={"args": ["--max-num-seqs", str(BATCH)]},
            scale={"min": 3, "max": 12, "queueDepth": QUEUE_DEPTH},
        )
        workspace = workspace_of(self.cluster.api.get("Workspace", NAMESPACE, NAME))
        policy = policy_of(workspace)
        assert policy is not None
        self.scaler = Scaler(policy)

    def live(self) -> Result:
        cluster = self.cluster
        for event in market_events(self.seed, self.end, self.market.zones):
            cluster.after(event.at, lambda event=event: self._happen(event))  # type: ignore[misc]
        cluster.after(TICK, self._tick)
        cluster.run_until(self.end)
        for claim in cluster.ledger.claims:
            self._count(claim)
        self.result.interrupted = sum(count for _, count in cluster.ledger.interrupted)
        self.result.lost = len(cluster.ledger.lost)
        self.result.launches = len(cluster.ledger.claims)
        return self.result

    def _happen(self, event: Event) -> None:
        if event.what == "short":
            self.market.spot.discard(event.zone)
        elif event.what == "back":
            self.market.spot.add(event.zone)
        else:
            cluster = self.cluster
            mine = [
                name for name in cluster.nodes_of("spot")
                if cluster.claims[name].zone == event.zone and name in cluster.held
            ]  # fmt: skip
            # A sweep takes half of those that are there, a node for each of its draws at most.
            if mine and (event.what == "take" or event.choice < 0.5):
                cluster.interrupt(mine[int(event.choice * len(mine))])
        self.cluster.look()

    def _tick(self) -> None:
        cluster = self.cluster
        cluster.after(TICK, self._tick)
        ready, load = len(cluster.ready_servers()), demand(self.seed, cluster.clock)
        running = min(load, ready * BATCH)
        waiting = load - running
        if cluster.clock > WARM_UP:
            self.result.ticks += 1
            self.result.met += waiting <= ready * QUEUE_DEPTH
        each = Reading(
            running / max(1, ready), waiting / max(1, ready), running / max(1, ready) / BATCH
        )
        current = asked_of(cluster.api.list("Deployment", NAMESPACE), names.with_on_demand(NAME))
        answer = self.scaler.step(Load(current, ready, (each,) * ready), cluster.clock)
        if answer.replicas != cluster.wanted:
            cluster.wanted = answer.replicas
            cluster.look()

    def _count(self, claim: Claim) -> None:
        if claim.appeared_at is None:
            return
        until = self.end if claim.gone_at is None else claim.gone_at
        hours = max(0.0, until - max(claim.appeared_at, WARM_UP)) / HOUR
        if claim.kind == "spot":
            self.result.spot_hours += hours
        else:
            self.result.other_hours += hours


if __name__ == "__main__":
    sys.exit(main())

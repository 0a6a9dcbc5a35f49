"""Runs rounds of faults: draws the kinds, keeps what failed, and says how each can be repeated."""

from __future__ import annotations

import faulthandler
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.faults.stage import Round, Stage
from tests.servers.idle_clock import IdleClock

ROUND_IDLE_SECONDS = 120.0


@dataclass(frozen=True)
class Kind:
    """One named kind of fault. `body` does it to a fresh round and asserts what must hold."""

    name: str
    body: Callable[[Round], None]


@dataclass
class Outcome:
    """Rounds by kind, and what failed: the kind, the round's seed and the traceback."""

    rounds: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    told: int = 0


def seed_of(seed: int, kind: str, number: int) -> str:
    """The seed of one round: it repeats whatever the others are."""
    return f"{seed}/{kind}/{number}"


def run_round(stage: Stage, kind: Kind, seed: str) -> None:
    """One round. Raises what a broken promise raises."""
    with stage.round(random.Random(seed)) as fresh, _watched(fresh):  # noqa: S311
        kind.body(fresh)


def run(stage: Stage, kinds: Sequence[Kind], *, count: int, seed: int) -> Iterator[Outcome]:
    """`count` rounds, the kinds one after another; the outcome so far after each."""
    outcome, began = Outcome(), time.monotonic()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        which = seed_of(seed, kind.name, number // len(kinds))
        try:
            run_round(stage, kind, which)
        except Exception:  # noqa: BLE001 - whatever it is, the campaign goes on and tells
            outcome.failures.append((kind.name, which, traceback.format_exc()))
        outcome.rounds[kind.name] += 1
        outcome.seconds = time.monotonic() - began
        yield outcome


@contextmanager
def _watched(fresh: Round) -> Iterator[None]:
    """A round in which nothing happens any more is told with all stacks, and its programs are killed."""
    over, clock = threading.Event(), IdleClock()

    def watch() -> None:
        while not over.wait(1.0):
            if clock() > ROUND_IDLE_SECONDS:
                faulthandler.dump_traceback(sys.stderr)
                fresh.give_up()
                return

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

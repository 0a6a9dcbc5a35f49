"""Runs a campaign and prints what failed, with the seed that repeats it.

python -m tests.faults [--count N] [--seed N] [--kind NAME]...
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from tests.faults.campaign import Outcome, run, run_round
from tests.faults.kinds import KINDS
from tests.faults.stage import Stage

TOLD_EVERY = 25


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="rounds in all")
    parser.add_argument("--seed", type=int, help="by default another one each time; it is printed")
    parser.add_argument(
        "--kind", action="append", help="only kinds whose name contains this; may be repeated"
    )
    parser.add_argument("--round", help="only this one, as a failure names it: SEED/KIND/NUMBER")
    parser.add_argument("--list", action="store_true", help="print the kinds and end")
    given = parser.parse_args(argv)
    kinds = [k for k in KINDS if not given.kind or any(part in k.name for part in given.kind)]
    if given.list or not kinds:
        print("\n".join(kind.name for kind in kinds or KINDS))
        return 0 if kinds else 2
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}, {len(kinds)} kinds", flush=True)
    outcome = Outcome()
    with Stage() as stage:
        if given.round:
            (kind,) = (each for each in KINDS if each.name == given.round.split("/")[1])
            run_round(stage, kind, given.round)
            return 0
        for outcome in run(stage, kinds, count=given.count, seed=seed):
            _tell(outcome)
    print(
        f"{outcome.rounds.total()} rounds of {len(outcome.rounds)} kinds in {outcome.seconds:.0f} s:"
        f" {len(outcome.failures)} failed (seed {seed})"
    )
    return 1 if outcome.failures else 0


def _tell(outcome: Outcome) -> None:
    rounds = outcome.rounds.total()
    while outcome.told < len(outcome.failures):
        kind, seed, text = outcome.failures[outcome.told]
        outcome.told += 1
        print(f"FAILED {kind} ({seed})\n{text}", flush=True)
    if rounds % TOLD_EVERY == 0:
        print(
            f"{rounds} rounds, {outcome.seconds:.0f} s, {len(outcome.failures)} failed", flush=True
        )


if __name__ == "__main__":
    sys.exit(main())

"""A round of each kind of fault. `make faults` runs thousands, with seeds of their own."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.faults.campaign import Kind, run, run_round, seed_of
from tests.faults.damage import rewritten
from tests.faults.kinds import KINDS
from tests.faults.orders import Calls, What
from tests.faults.stage import Round, Stage

pytestmark = [pytest.mark.servers, pytest.mark.slow]
# In CI always the same rounds; elsewhere other ones each time.
SEED = 1 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    print(f"seed {SEED}")
    with Stage() as made:
        yield made


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_after_a_fault_everything_is_right_again(stage: Stage, kind: Kind) -> None:
    seed = seed_of(SEED, kind.name, 0)
    print(f"python -m tests.faults --round {seed!r}")
    run_round(stage, kind, seed)


def test_there_are_enough_kinds_and_each_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) >= 40


def lost_lease(fresh: Round) -> None:
    site = fresh.site
    site.start()
    site.promise_all()
    site.client.release("lease")
    site.prove()


def lost_pin(fresh: Round) -> None:
    site = fresh.site
    site.start()
    site.promise_all()
    site.client.pin(site.models[1].key, pinned=False)
    site.prove()


def wrong_byte(fresh: Round) -> None:
    site = fresh.site
    site.start()
    site.promise_all()
    rewritten(
        site.root / "models" / site.models[0].key.removeprefix("sha256:") / "config.json", b"{}"
    )
    site.assert_no_wrong_byte()


def ended(fresh: Round) -> None:
    site = fresh.site
    site.start()
    site.orders.give(What.KILL, on=Calls.CHANGE)
    site.try_pull(0)
    assert site.program is not None
    site.program.wait()
    site.prove()


@pytest.mark.parametrize("body", [lost_lease, lost_pin, wrong_byte, ended])
def test_a_campaign_notices_what_it_is_for(stage: Stage, body: object) -> None:
    """Without a fault in the product, what it would do is done by hand."""
    kind = Kind("by hand", body)  # type: ignore[arg-type]
    *_, outcome = run(stage, [kind], count=1, seed=1)
    ((name, seed, text),) = outcome.failures
    assert (name, seed) == ("by hand", "1/by hand/0")
    assert "AssertionError" in text

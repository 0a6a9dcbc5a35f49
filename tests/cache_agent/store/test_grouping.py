"""Group commit: one fsync for those who wait together, each undone alone, none durable before it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_agent.store.group_commit import GroupCommit
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Holder, HolderKind, Lease
from modelimage.digest import Digest
from modelimage.errors import NoSpace, NotFound
from tests.servers.process import wait_until

KEY = Digest("ab" * 32)


class CountingLedger(Ledger):
    """Counts commits; `full` makes the next ones fail."""

    commits = 0
    full = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
            if self.full:
                raise NoSpace("no space left on device")
        self.commits += 1


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[CountingLedger]:
    made = CountingLedger(StorePaths(tmp_path))
    yield made
    made.close()


def lease(number: int) -> Lease:
    return Lease(f"lease-{number:03}", KEY, Holder(HolderKind.MANUAL, "x"), 1.0)


def test_those_who_wait_together_share_a_commit(ledger: CountingLedger) -> None:
    group = GroupCommit(ledger)
    entered, go = threading.Event(), threading.Event()

    def first() -> int:
        entered.set()
        go.wait()
        return 0

    def put(number: int) -> int:
        return group.run(lambda: ledger.put_lease(lease(number)) or number)  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(21) as pool:
        leading = pool.submit(group.run, first)
        entered.wait()
        others = [pool.submit(put, number) for number in range(20)]
        wait_until(lambda: len(group._waiting) == 20, what="twenty who wait")
        go.set()
        assert leading.result() == 0
        assert [each.result() for each in others] == list(range(20))
    assert ledger.commits == 2
    assert len(ledger.leases()) == 20


def test_a_step_that_fails_is_undone_alone(ledger: CountingLedger) -> None:
    group = GroupCommit(ledger)

    def fails() -> None:
        ledger.put_lease(lease(1))
        raise NotFound("no such model")

    with pytest.raises(NotFound):
        group.run(fails)
    group.run(lambda: ledger.put_lease(lease(2)))
    assert [each.id for each in ledger.leases()] == ["lease-002"]


def test_a_commit_that_fails_has_failed_for_everyone(ledger: CountingLedger) -> None:
    group = GroupCommit(ledger)
    ledger.full = True
    with pytest.raises(NoSpace):
        group.run(lambda: ledger.put_lease(lease(1)))
    ledger.full = False
    assert ledger.leases() == []
    group.run(lambda: ledger.put_lease(lease(2)))
    assert len(ledger.leases()) == 1

"""Reads of the ledger wait for no commit, and see every commit: one's own changes at once, those of others after."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from cache_agent.store.generation import GenerationMarker
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Holder, HolderKind, Lease
from modelimage.digest import Digest

KEY = Digest("a" * 64)
LEASE = Lease("one", KEY, Holder(HolderKind.POD, "pod"), 1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(StorePaths(tmp_path))
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_reader_does_not_wait_for_who_writes(ledger: Ledger, other: ThreadPoolExecutor) -> None:
    with ledger.transaction():
        ledger.put_lease(LEASE)
        assert ledger.lease("one") == LEASE  # its own change
        assert other.submit(ledger.lease, "one").result() is None  # not durable yet
    assert other.submit(ledger.lease, "one").result() == LEASE


def test_what_was_rolled_back_was_never_there(ledger: Ledger, other: ThreadPoolExecutor) -> None:
    def fails() -> None:
        with ledger.transaction():
            ledger.put_lease(LEASE)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert ledger.leases() == other.submit(ledger.leases).result() == []


def test_a_step_that_must_not_be_seen_in_part_holds_readers_up(
    ledger: Ledger, other: ThreadPoolExecutor
) -> None:
    with ledger.exclusive():
        with ledger.transaction():
            ledger.put_lease(LEASE)
        waiting: Future[Lease | None] = other.submit(ledger.lease, "one")
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        assert ledger.lease("one") == LEASE  # who holds it reads on
    assert waiting.result() == LEASE


def test_what_another_process_commits_while_a_ledger_is_opened_is_no_loss(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit falls between the two numbers that are compared."""
    read = GenerationMarker.read

    def read_after_a_commit(marker: GenerationMarker) -> int:
        ledger.put_lease(LEASE)
        return read(marker)

    monkeypatch.setattr(GenerationMarker, "read", read_after_a_commit)
    with closing(Ledger(StorePaths(tmp_path))) as second:
        assert not second.lost
        assert second.lease("one") == LEASE

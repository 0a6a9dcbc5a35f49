"""Digests of earlier runs: found for the same bytes only, and losing them is no error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.digest_cache import SETTLED_SECONDS, DigestCache
from builder.layer_plan import PlannedFile, PlannedLayer
from modelimage.hasher import hash_layer
from modelimage.record import Role

DIGESTS_LATER = 3600.0


def later() -> float:
    return time.time() + DIGESTS_LATER


def layer_of(path: Path) -> PlannedLayer:
    return PlannedLayer(Role.WEIGHT, (PlannedFile(path.name, path.stat().st_size, Role.WEIGHT),))


def key_of(memory: DigestCache, path: Path) -> str | None:
    return memory.key(layer_of(path), {path.name: path})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"some weights")
    return path


@pytest.fixture
def memory(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "digests", clock=later)


def test_what_was_remembered_is_recalled(memory: DigestCache, weights: Path) -> None:
    digests = hash_layer(layer_of(weights).recipe, lambda _: weights)
    key = key_of(memory, weights)
    assert key is not None
    assert memory.recall(key) is None
    memory.remember(key, digests)
    assert memory.recall(key) == digests
    assert key_of(memory, weights) == key


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def rewrite_with_its_old_time(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"othr weights")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"othr weights")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [grow, rewrite_with_its_old_time, replace, touch])
def test_a_changed_file_has_another_key(
    memory: DigestCache, weights: Path, change: Callable[[Path], None]
) -> None:
    before = key_of(memory, weights)
    change(weights)
    while key_of(memory, weights) == before:
        # The clock of the filesystem ticks every few milliseconds: this is what SETTLED_SECONDS is for.
        change(weights)


def test_a_file_that_changed_just_now_has_no_key(tmp_path: Path, weights: Path) -> None:
    now = weights.stat().st_ctime
    just_after = DigestCache(tmp_path, clock=lambda: now + SETTLED_SECONDS / 2)
    assert key_of(just_after, weights) is None
    settled = DigestCache(tmp_path, clock=lambda: now + 2 * SETTLED_SECONDS)
    assert key_of(settled, weights) is not None


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"layer": 7, "files": {}}', b"\xff"])
def test_a_damaged_memory_is_an_empty_one(
    tmp_path: Path, memory: DigestCache, weights: Path, damage: bytes
) -> None:
    key = key_of(memory, weights)
    assert key is not None
    memory.remember(key, hash_layer(layer_of(weights).recipe, lambda _: weights))
    (kept,) = (tmp_path / "digests").glob("*.json")
    kept.write_bytes(damage)
    assert memory.recall(key) is None


def test_a_place_that_can_not_be_written_costs_time_only(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    memory = DigestCache(tmp_path / "file" / "digests", clock=later)
    key = key_of(memory, weights)
    assert key is not None
    memory.remember(key, hash_layer(layer_of(weights).recipe, lambda _: weights))
    assert memory.recall(key) is None

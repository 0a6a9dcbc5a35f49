"""What reading a model into memory tells of the disk."""

from __future__ import annotations

import pytest

from cache_agent.residency.pages import Resident
from cache_agent.wanted.memory import read_rate

SIZE = 1 << 30


@pytest.mark.parametrize(
    ("resident", "believable", "read", "seconds", "rate"),
    [
        (0, True, SIZE, 2.0, 540_000_000),
        (SIZE // 20, True, SIZE, 2.0, 540_000_000),
        (SIZE // 2, True, SIZE, 2.0, None),  # half of it came from memory
        (0, False, SIZE, 2.0, None),  # nobody knows what came from where
        (0, True, 1 << 20, 0.001, None),  # too short to tell
        (0, True, SIZE, 0.0, None),
    ],
)
def test_only_a_long_read_of_what_was_not_in_memory_tells_the_disks_rate(
    resident: int, believable: bool, read: int, seconds: float, rate: int | None
) -> None:
    assert read_rate(Resident(SIZE, resident, believable=believable), read, seconds) == rate

"""Plans which models to evict when space is needed. Pure: facts in, an explained plan out; no clock, no disk.

A model's value is its cost of fetching it again times the expected use, per byte freed:

    value = fetch_seconds * uses * 2 ** -(age / HALF_LIFE) / bytes freed

Pinned and leased models are never victims. Files shared with a model that stays free nothing. Pulls and
pre-warming evict in this order; pre-warming ranks models by their priorities first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from modelimage.digest import Digest

HALF_LIFE: Final = 7 * 86400.0
# The name of a pin in `Candidate.held_by`.
PIN: Final = "a pin"
# Assumed cost of a fetch that was never measured, in seconds per byte (1 Gbit/s).
DEFAULT_SECONDS_PER_BYTE: Final = 1 / 125e6


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model as the policy sees it. `files`: size by file; `held_by`: names of leases and pins.

    Models of a lower `rank` are evicted before all others, whatever their values.
    """

    key: Digest
    image: str
    files: Mapping[Digest, int]
    last_used: float
    uses: float
    fetch_seconds: float
    held_by: tuple[str, ...] = ()
    rank: int = 0

    @property
    def size(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True, slots=True)
class Victim:
    """A model to evict, the bytes that this frees, and the reason with its numbers."""

    key: Digest
    image: str
    freed: int
    value: float
    why: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """Victims in eviction order. When `freed` is less than needed, evict nothing."""

    victims: tuple[Victim, ...]
    freed: int
    held_by: tuple[str, ...]


def expected_use(candidate: Candidate, now: float) -> float:
    """Decayed number of uses. Timestamps in the future (the clock was set back) count as age 0."""
    age = max(0.0, now - candidate.last_used)
    # The lower bound keeps the fetch cost relevant for models that were never used.
    return float(max(candidate.uses, 0.01) * 2.0 ** -(age / HALF_LIFE))


def value(candidate: Candidate, freed: int, now: float) -> float:
    """The value of keeping a model, per byte that its eviction frees."""
    cost = candidate.fetch_seconds or candidate.size * DEFAULT_SECONDS_PER_BYTE
    return cost * expected_use(candidate, now) / max(freed, 1)


def plan_eviction(candidates: Sequence[Candidate], *, need: int, now: float) -> Eviction:
    """Choose the models of the lowest ranks, and among them the least valuable, that together free `need` bytes.

    Laws: no victim is held; without any one victim, too little is freed; equal input gives an equal plan.
    """
    chosen: list[Candidate] = []
    freed, order = 0, _order(candidates, now)
    while freed < need and (best := next(order, None)) is not None:
        chosen.append(best[0])
        freed += best[1]
    chosen = _without_needless(chosen, candidates, need)
    held = sorted({holder for candidate in candidates for holder in candidate.held_by})
    return _explained(chosen, candidates, now, tuple(held))


def next_victims(
    candidates: Sequence[Candidate], *, most: int, now: float
) -> tuple[tuple[Candidate, int], ...]:
    """The models that would go first, at most so many, with the bytes that each frees after those before it."""
    return tuple(islice(_order(candidates, now), most))


def evictable(candidates: Sequence[Candidate]) -> int:
    """Bytes freed by evicting every model that isn't held."""
    return _freed_by([c for c in candidates if not c.held_by], candidates)


def _order(candidates: Sequence[Candidate], now: float) -> Iterator[tuple[Candidate, int]]:
    """The models that may go, the least valuable of the lowest rank first, with the bytes that each frees in turn."""
    free_to_go = [candidate for candidate in candidates if not candidate.held_by]
    chosen: list[Candidate] = []
    # Held models count too: a file that they share frees nothing.
    references = _references(candidates)
    # Values are computed again after each choice: of a shared file only the last chosen holder frees bytes.
    while (best := _least_valuable(free_to_go, chosen, references, now)) is not None:
        chosen.append(best)
        yield best, _release(best, references)


def _least_valuable(
    free_to_go: Iterable[Candidate],
    chosen: Sequence[Candidate],
    references: Counter[Digest],
    now: float,
) -> Candidate | None:
    taken = {candidate.key for candidate in chosen}
    rest = [candidate for candidate in free_to_go if candidate.key not in taken]
    # A model that frees nothing alone may free shared files together with others: rank it by its size.
    return min(
        rest,
        key=lambda c: (c.rank, value(c, _frees(c, references) or c.size, now), c.key),
        default=None,
    )


def _without_needless(
    chosen: list[Candidate], candidates: Sequence[Candidate], need: int
) -> list[Candidate]:
    """Drop superfluous victims, most valuable first: the greedy choice may overshoot."""
    kept = list(chosen)
    if _freed_by(kept, candidates) < need:
        return kept
    for candidate in reversed(chosen):
        without = [each for each in kept if each.key != candidate.key]
        if _freed_by(without, candidates) >= need:
            kept = without
    return kept


def _explained(
    chosen: Sequence[Candidate],
    candidates: Sequence[Candidate],
    now: float,
    held: tuple[str, ...],
) -> Eviction:
    references = _references(candidates)
    victims = []
    for candidate in chosen:
        freed = _release(candidate, references)
        worth = value(candidate, freed or candidate.size, now)
        why = _why(candidate, now)
        victims.append(Victim(candidate.key, candidate.image, freed, worth, why))
    return Eviction(tuple(victims), sum(victim.freed for victim in victims), held)


def _why(candidate: Candidate, now: float) -> str:
    """`used 2 times, last 3 days ago; took 40 s to fetch`."""
    uses = round(candidate.uses)
    times = f"used {uses} {'time' if uses == 1 else 'times'}, last" if uses else "last used"
    said = f"{times} {_span(max(0.0, now - candidate.last_used))} ago"
    took = candidate.fetch_seconds
    return f"{said}; took {_span(took)} to fetch" if took else said


def _span(seconds: float) -> str:
    """`40 s`, `5 min`, `3 h`, `12 days`: the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _references(candidates: Iterable[Candidate]) -> Counter[Digest]:
    return Counter(digest for candidate in candidates for digest in candidate.files)


def _frees(candidate: Candidate, references: Mapping[Digest, int]) -> int:
    return sum(size for digest, size in candidate.files.items() if references[digest] == 1)


def _release(candidate: Candidate, references: Counter[Digest]) -> int:
    freed = _frees(candidate, references)
    references.subtract(candidate.files.keys())
    return freed


def _freed_by(chosen: Iterable[Candidate], candidates: Iterable[Candidate]) -> int:
    references = _references(candidates)
    return sum(_release(candidate, references) for candidate in chosen)

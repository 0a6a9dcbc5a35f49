"""Parses the load from a server's Prometheus metrics page. Text in, a Reading out.

vLLM 0.6 to 0.32 name the share of KV cache in use `gpu_cache_usage_perc` or `kv_cache_usage_perc`. A server with
several engines has a line for each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from modelimage.errors import RemoteRefused
from workspace.engines import QUEUE_METRICS, TOKEN_METRICS
from workspace.scaler import Reading

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_RUNNING: Final = tuple(running for running, _ in QUEUE_METRICS.values())
_WAITING: Final = tuple(waiting for _, waiting in QUEUE_METRICS.values())
_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
# A sample above zero, by its text: the page isn't parsed for this, as servers are many and tokens a single line.
_TOKENS: Final = re.compile(
    rf"^(?:{'|'.join(TOKEN_METRICS.values())})(?:\{{[^\n]*\}})? [0-9.e+]*[1-9]", re.MULTILINE
)
# Lines of the wanted metrics, of which each takes 25 us: one engine of vLLM has 100.
_MOST_LINES: Final = 5000
# Of their text. It takes as long as it is, most of all what is escaped in labels: 1 us for each character.
_MOST_CHARACTERS: Final = 512 << 10
# Of anything that a server counts.
_MOST: Final = 1e15
HELD: Final = "weightyard_activator_requests_waiting"


def parse_reading(text: str) -> Reading:
    """A server's load. Raises RemoteRefused when the page has no queue metrics."""
    totals = _totals(text, {*_RUNNING, *_WAITING, *_USAGE})
    running, waiting = _first(totals, _RUNNING), _first(totals, _WAITING)
    if running is None or waiting is None:
        raise RemoteRefused(
            "the server's metrics have no queue length",
            hint="SGLang needs --enable-metrics; other engines scale by spec.replicas only.",
        )
    # Usage is summed over engines like the queues, so it is capped at a whole cache.
    return Reading(running, waiting, min(1.0, _first(totals, _USAGE) or 0.0))


def parse_held(text: str) -> int:
    """The number of requests that an activator holds."""
    return int(_totals(text, {HELD}).get(HELD, 0))


def has_generated(text: str) -> bool:
    """Whether a server has counted a generated token."""
    return _TOKENS.search(text) is not None


def read_samples(text: str, wanted: Collection[str]) -> Iterator[Sample]:
    """The samples of some names, in the page's order. Raises RemoteRefused when one can't be read, or for too many."""
    # Imported here: `up` asks only whether tokens were counted, and parses nothing.
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    # A page has thousands of lines, and reading each costs more than all else that is done with it.
    heads = tuple(wanted)
    lines = [line for line in text.splitlines() if line.startswith(heads)]
    if len(lines) > _MOST_LINES:
        raise RemoteRefused(
            f"the metrics page can't be read: it has {len(lines)} lines, and {_MOST_LINES} are read"
        )
    if sum(map(len, lines)) > _MOST_CHARACTERS:
        raise RemoteRefused("the metrics page can't be read: its lines are too long")
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if sample.name in wanted:
                    yield sample._replace(value=_bounded(sample.name, sample.value))
    except ValueError as error:
        raise RemoteRefused(f"the metrics page can't be read: {error}") from error


def _totals(text: str, wanted: set[str]) -> dict[str, float]:
    """The sum of each wanted metric over all its lines."""
    totals: dict[str, float] = defaultdict(float)
    for sample in read_samples(text, wanted):
        totals[sample.name] += sample.value
    return totals


def _bounded(name: str, value: float) -> float:
    """A count or share as a server reports it. Prometheus allows NaN and infinity, which nobody can count with."""
    if not 0 <= value <= _MOST:
        raise ValueError(f"{name} is {value}")
    return value


def _first(totals: dict[str, float], names: tuple[str, ...]) -> float | None:
    return next((totals[name] for name in names if name in totals), None)

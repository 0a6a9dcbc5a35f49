"""Compares two versions of a Workspace by what their servers counted. Pure: pages and settings in, a verdict out.

Servers count from their start, so a comparison takes the difference of two readings of the same server. What can't be
told is inconclusive, never passed: no traffic, a page without these metrics, a server that doesn't answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from modelimage.errors import RemoteRefused
from workspace.rollout_spec import Analysis
from workspace.server_metrics import read_samples

# A histogram's cumulative counts by upper bound, in seconds.
Buckets = Mapping[float, float]

# vLLM 0.6 to 0.32; the first name that a page has is taken.
_FIRST_TOKEN: Final = ("vllm:time_to_first_token_seconds_bucket",)
_NEXT_TOKEN: Final = (
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
)
_QUEUE: Final = ("vllm:request_queue_time_seconds_bucket",)
_PREEMPTIONS: Final = "vllm:num_preemptions_total"
_FINISHED: Final = "vllm:request_success_total"
_CORRUPTED: Final = "vllm:corrupted_requests_total"
# The HTTP server's own count has what fails before or after the engine.
_ANSWERS: Final = "http_requests_total"
_HISTOGRAMS: Final = frozenset({*_FIRST_TOKEN, *_NEXT_TOKEN, *_QUEUE})
_WANTED: Final = _HISTOGRAMS | {_PREEMPTIONS, _FINISHED, _CORRUPTED, _ANSWERS}


@dataclass(frozen=True, slots=True)
class ServerTotals:
    """What servers counted: `requests` that ended, those of them that failed, preemptions, and times in seconds."""

    requests: float = 0.0
    failed: float = 0.0
    preemptions: float = 0.0
    first_token: Buckets = field(default_factory=dict)
    next_token: Buckets = field(default_factory=dict)
    queue: Buckets = field(default_factory=dict)

    def since(self, earlier: ServerTotals) -> ServerTotals:
        """What was counted after `earlier`, a reading of the same process."""
        return ServerTotals(
            self.requests - earlier.requests,
            self.failed - earlier.failed,
            self.preemptions - earlier.preemptions,
            _minus(self.first_token, earlier.first_token),
            _minus(self.next_token, earlier.next_token),
            _minus(self.queue, earlier.queue),
        )

    def continues(self, earlier: ServerTotals) -> bool:
        """Whether the same process counted on: after a restart some number is lower."""
        return (
            self.requests >= earlier.requests
            and self.failed >= earlier.failed
            and self.preemptions >= earlier.preemptions
            and _count(self.first_token) >= _count(earlier.first_token)
            and _count(self.next_token) >= _count(earlier.next_token)
        )


class Outcome(StrEnum):
    """What a comparison says."""

    PASSED = "Passed"
    FAILED = "Failed"
    INCONCLUSIVE = "Inconclusive"


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of both versions; `limit` is the highest value of the new one that passes, or the `least` one.

    `stable` is None where the new one isn't compared with the old one.
    """

    name: str
    stable: float | None
    candidate: float
    limit: float
    least: bool = False

    @property
    def passed(self) -> bool:
        return self.candidate >= self.limit if self.least else self.candidate <= self.limit

    def __str__(self) -> str:
        beside = "" if self.stable is None else f" beside {shown(self.stable)}"
        side = "below" if self.least else "above"
        return f"{self.name} is {shown(self.candidate)}{beside}, {side} the limit of {shown(self.limit)}"


@dataclass(frozen=True, slots=True)
class Untold:
    """A query without one number as its answer: `why`, as the end of a sentence that begins with the query's name."""

    name: str
    why: str


QueryAnswer = Compared | Untold


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of one comparison, with a sentence that says why; one that says nothing yet keeps its words."""

    outcome: Outcome
    text: str
    measures: tuple[Compared, ...] = ()


@dataclass(frozen=True, slots=True)
class AnalysisResult:
    """A verdict on the counts of the last `seconds`, over which a version had a weight (`window`).

    `restarted`: a server has started again meanwhile, and the time is that since.
    """

    window: str
    seconds: float
    verdict: Judgement
    restarted: bool = False


def parse_counts(text: str) -> ServerTotals:
    """A server's counts from its metrics page. Raises RemoteRefused when they can't be read or are missing."""
    sums: dict[str, float] = {}
    histograms: dict[str, dict[float, float]] = {}
    failed = answered = 0.0
    for sample in read_samples(text, _WANTED):
        name, labels, value = sample.name, sample.labels, sample.value
        if name in _HISTOGRAMS:
            bounds, bound = histograms.setdefault(name, {}), _upper(labels.get("le", ""))
            bounds[bound] = bounds.get(bound, 0.0) + value
        elif name != _ANSWERS:
            sums[name] = sums.get(name, 0.0) + value
        # Not health checks and scrapes: they never fail, and would thin every error rate out.
        elif labels.get("handler", "").startswith("/v1/"):
            answered += value
            failed += value if labels.get("status", "").startswith("5") else 0.0
    if _FINISHED not in sums or not histograms:
        raise RemoteRefused(
            "the server's metrics don't say how requests ended",
            hint="Versions are compared by vLLM's metrics; for other engines use pauses and promote by hand.",
        )
    return ServerTotals(
        # The engine counts what it finished, the HTTP server also what never
        # reached it: either may have more.
        requests=max(sums[_FINISHED], answered),
        failed=failed + sums.get(_CORRUPTED, 0.0),
        preemptions=sums.get(_PREEMPTIONS, 0.0),
        first_token=_first(histograms, _FIRST_TOKEN),
        next_token=_first(histograms, _NEXT_TOKEN),
        queue=_first(histograms, _QUEUE),
    )


def total(counts: Iterable[ServerTotals]) -> ServerTotals:
    """The counts of several servers together."""
    listed = list(counts)
    return ServerTotals(
        sum(each.requests for each in listed),
        sum(each.failed for each in listed),
        sum(each.preemptions for each in listed),
        _plus(each.first_token for each in listed),
        _plus(each.next_token for each in listed),
        _plus(each.queue for each in listed),
    )


def judge(stable: ServerTotals, candidate: ServerTotals, settings: Analysis) -> Judgement:
    """Compares what both versions counted over the same time. A measure that one of them lacks isn't compared."""
    least = settings.min_requests
    if candidate.requests < least or stable.requests < least:
        return Judgement(
            Outcome.INCONCLUSIVE, f"At least {least} requests to each version are needed."
        )
    measures = tuple(_compared(stable, candidate, settings))
    worse = [each for each in measures if not each.passed]
    if worse:
        said = "; ".join(map(str, worse))
        return Judgement(Outcome.FAILED, f"The new version is worse: {said}.", measures)
    return Judgement(
        Outcome.PASSED, f"The new version is no worse in {len(measures)} measures.", measures
    )


def with_queries(verdict: Judgement, answers: Sequence[QueryAnswer]) -> Judgement:
    """The verdict on the servers' counts and on the answers to PromQL queries together.

    A broken bound fails the version, whatever the counts say. An answer that says nothing lets nothing pass.
    """
    told = tuple(each for each in answers if isinstance(each, Compared))
    untold = [each for each in answers if isinstance(each, Untold)]
    measures = (*verdict.measures, *told)
    broken = [each for each in told if not each.passed]
    if broken:
        # Of the counts only a failure is told as well: words that say nothing yet would hide the bound.
        words = f"{verdict.text} " if verdict.outcome is Outcome.FAILED else ""
        said = "; ".join(map(str, broken))
        return Judgement(Outcome.FAILED, f"{words}A query's bound is broken: {said}.", measures)
    if untold and verdict.outcome is Outcome.PASSED:
        said = "; ".join(f"{each.name} {each.why}" for each in untold)
        return Judgement(Outcome.INCONCLUSIVE, f"Queries say nothing: {said}.", measures)
    return replace(verdict, measures=measures)


def quantile(buckets: Buckets, share: float) -> float | None:
    """The value that a share of what was counted stays below, in seconds; None without any count."""
    bounds = sorted(buckets)
    count = buckets[bounds[-1]] if bounds else 0.0
    if count <= 0:
        return None
    below, lower = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= share * count:
            if math.isinf(bound):
                return lower  # all that is known: it is longer than the last bound
            within = buckets[bound] - below
            # Counts are taken as evenly spread within a bucket, as Prometheus' `histogram_quantile` does.
            return lower + (bound - lower) * (share * count - below) / within if within else bound
        below, lower = buckets[bound], bound
    return lower


def _compared(
    stable: ServerTotals, candidate: ServerTotals, settings: Analysis
) -> Iterable[Compared]:
    limits = settings.max_regression
    error_rate = stable.failed / stable.requests
    yield Compared(
        "error rate",
        error_rate,
        candidate.failed / candidate.requests,
        error_rate + limits.error_rate,
    )
    preempted = stable.preemptions / stable.requests
    yield Compared(
        "preemptions per request", preempted, candidate.preemptions / candidate.requests,
        preempted + limits.preemptions,
    )  # fmt: skip
    timed = (
        ("time to first token", 0.5, stable.first_token, candidate.first_token, limits.time_to_first_token),
        ("time to first token", 0.95, stable.first_token, candidate.first_token, limits.time_to_first_token),
        ("time per output token", 0.5, stable.next_token, candidate.next_token, limits.time_per_output_token),
        ("time per output token", 0.95, stable.next_token, candidate.next_token, limits.time_per_output_token),
        ("queue time", 0.95, stable.queue, candidate.queue, limits.queue_time),
    )  # fmt: skip
    for name, share, old, new, allowed in timed:
        before, after = quantile(old, share), quantile(new, share)
        if before is not None and after is not None:
            # Times within one bucket can't be told apart, so the bucket's own width is allowed as well.
            limit = max(before * (1 + allowed), _upper_bound(old, before))
            yield Compared(f"p{share * 100:g} {name} in seconds", before, after, limit)


def _upper_bound(buckets: Buckets, value: float) -> float:
    """The upper bound of the bucket that a value lies in."""
    return min(
        (bound for bound in buckets if bound >= value and not math.isinf(bound)), default=value
    )


def _minus(now: Buckets, earlier: Buckets) -> Buckets:
    return {bound: max(0.0, count - earlier.get(bound, 0.0)) for bound, count in now.items()}


def _count(buckets: Buckets) -> float:
    """All that a histogram counted."""
    # Buckets are cumulative: the greatest count is that of all.
    return max(buckets.values(), default=0.0)


def _plus(several: Iterable[Buckets]) -> Buckets:
    summed: dict[float, float] = {}
    for buckets in several:
        for bound, count in buckets.items():
            summed[bound] = summed.get(bound, 0.0) + count
    return summed


def _first(found: Mapping[str, Buckets], names: tuple[str, ...]) -> Buckets:
    return next((found[name] for name in names if name in found), {})


def _upper(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RemoteRefused(f"the metrics page can't be read: le is {text!r}") from error


def shown(value: float) -> str:
    """A measured value, as statuses and reasons show it."""
    return f"{value:.3g}"

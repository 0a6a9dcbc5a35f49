"""Two versions compared by what their servers counted: worse is found, and what can't be told never passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import RemoteRefused
from workspace.analysis import Outcome, ServerTotals, judge, parse_counts, quantile, total
from workspace.rollout_spec import Analysis

SETTINGS = Analysis()


def page(
    *, requests: int = 100, first_token: float = 0.1, next_token: float = 0.02, failed: int = 0,
    preemptions: int = 0, corrupted: int = 0,
) -> str:  # fmt: skip
    """vLLM's metrics page after some requests that all took the same times, in seconds."""
    bounds = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, float("inf"))

    def histogram(name: str, value: float) -> list[str]:
        return [
            f'vllm:{name}_bucket{{le="{bound if bound < 9 else "+Inf"}",model_name="m"}} '
            f"{requests if value <= bound else 0}"
            for bound in bounds
        ]

    return "\n".join(
        [
            "# TYPE vllm:request_success counter",
            f'vllm:request_success_total{{finished_reason="stop",model_name="m"}} {requests - 1}.0',
            'vllm:request_success_total{finished_reason="length",model_name="m"} 1.0',
            f'vllm:num_preemptions_total{{model_name="m"}} {preemptions}.0',
            f'vllm:corrupted_requests_total{{model_name="m"}} {corrupted}.0',
            "# TYPE vllm:time_to_first_token_seconds histogram",
            *histogram("time_to_first_token_seconds", first_token),
            *histogram("request_time_per_output_token_seconds", next_token),
            *histogram("request_queue_time_seconds", 0.0),
            f'http_requests_total{{handler="/v1/completions",method="POST",status="2xx"}} {requests - failed}.0',
            f'http_requests_total{{handler="/v1/completions",method="POST",status="5xx"}} {failed}.0',
            'http_requests_total{handler="/metrics",method="GET",status="5xx"} 99.0',
            "process_open_fds NaN",
            "",
        ]
    )


@pytest.mark.parametrize(
    ("worse", "measure"),
    [
        ({"first_token": 0.4}, "p50 time to first token"),
        ({"next_token": 0.2}, "p95 time per output token"),
        ({"failed": 5}, "error rate"),
        ({"corrupted": 5}, "error rate"),
        ({"preemptions": 40}, "preemptions per request"),
    ],
)
def test_what_is_worse_is_named_with_both_values(worse: dict[str, float], measure: str) -> None:
    verdict = judge(parse_counts(page()), parse_counts(page(**worse)), SETTINGS)  # type: ignore[arg-type]
    assert verdict.outcome is Outcome.FAILED
    assert measure in verdict.text
    found = next(each for each in verdict.measures if measure in each.name)
    assert found.candidate > found.limit >= found.stable


def test_the_same_and_the_better_pass() -> None:
    stable = parse_counts(page(first_token=0.4, failed=1))
    for counts in (stable, parse_counts(page())):
        verdict = judge(stable, counts, SETTINGS)
        assert verdict.outcome is Outcome.PASSED
        assert len(verdict.measures) >= 6


@pytest.mark.parametrize(("stable", "candidate"), [(100, 19), (19, 100), (0, 0)])
def test_too_few_requests_decide_nothing(stable: int, candidate: int) -> None:
    verdict = judge(
        ServerTotals(requests=stable), ServerTotals(requests=candidate, failed=candidate), SETTINGS
    )
    assert verdict.outcome is Outcome.INCONCLUSIVE
    # No counts: each change of the text is written to the status.
    assert "At least 20 requests" in verdict.text


@pytest.mark.parametrize(
    "text",
    [
        "", "vllm:request_success_total 5\n",
        page().replace("vllm:", "tgi:"),
        page().replace("99.0", "1.0").replace('status="5xx"} 0.0', 'status="5xx"} NaN'),
        page().replace('le="0.01"', 'le="low"'),
        page().replace("vllm:num_preemptions_total", "vllm:num_preemptions_total{"),
        page().replace('preemptions_total{model_name="m"} 0.0', 'preemptions_total{model_name="m"} -1'),
        page().replace('preemptions_total{model_name="m"} 0.0', 'preemptions_total{model_name="m"} +Inf'),
    ],
)  # fmt: skip
def test_pages_that_dont_tell_are_refused(text: str) -> None:
    with pytest.raises(RemoteRefused):
        parse_counts(text)


def test_only_what_was_counted_since_is_compared() -> None:
    earlier, now = (
        parse_counts(page(requests=100, first_token=2.0)),
        parse_counts(page(requests=100)),
    )
    later = total([earlier, now])
    assert quantile(later.since(earlier).first_token, 0.5) == quantile(now.first_token, 0.5)
    # A server that has started again counts from 0, in one number or another.
    assert later.continues(earlier)
    assert not now.continues(later)
    for lower in ({"failed": 1}, {"preemptions": 1}, {"next_token": {0.1: 200.0}}):
        assert not now.continues(replace(now, **lower))  # type: ignore[arg-type]


@given(
    st.lists(st.floats(0.0, 3.0), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.95]),
)
def test_a_quantile_lies_in_the_right_bucket(values: list[float], share: float) -> None:
    bounds = (0.1, 0.5, 1.0, 2.0, float("inf"))
    buckets = {bound: float(sum(each <= bound for each in values)) for bound in bounds}
    found = quantile(buckets, share)
    assert found is not None
    exact = sorted(values)[max(0, -(-int(share * len(values) * 100) // 100) - 1)]
    within = next(bound for bound in bounds if exact <= bound)
    assert 0 <= found <= (within if within <= 2.0 else 2.0) or found <= 2.0
    assert quantile({}, share) is None


@given(st.floats(0.0, 1.0), st.integers(20, 10_000))
def test_a_version_is_never_worse_than_itself(share: float, requests: int) -> None:
    counts = ServerTotals(
        requests,
        requests * share,
        requests * share,
        {0.1: requests * share, float("inf"): requests},
    )
    assert judge(counts, counts, SETTINGS).outcome is Outcome.PASSED

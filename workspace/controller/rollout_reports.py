"""What a rollout's status says of comparisons and probes. Pure."""

from __future__ import annotations

from workspace.analysis import Judgement
from workspace.probes.verdicts import ProbeOutcome, ProbeResult
from workspace.rollout_status import MeasureReport, ProbesReport


def measures_report(verdict: Judgement) -> tuple[MeasureReport, ...]:
    """Both values of each measure, as text."""
    return tuple(
        MeasureReport(
            name=each.name,
            stable="-" if each.stable is None else f"{each.stable:.3g}",
            candidate=f"{each.candidate:.3g}",
            limit=f"{each.limit:.3g}",
            passed=each.passed,
        )
        for each in verdict.measures
    )


def probes_report(probes: ProbeResult) -> ProbesReport:
    """How many passed, and the first that didn't."""
    first = probes.first
    return ProbesReport(
        total=len(probes.verdicts), passed=probes.count(ProbeOutcome.PASSED),
        failed=probes.count(ProbeOutcome.FAILED), first=first.name if first else "",
        cause=first.cause if first else "",
    )  # fmt: skip

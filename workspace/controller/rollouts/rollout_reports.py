"""What a rollout's status says of comparisons and probes. Pure."""

from __future__ import annotations

from workspace.analysis import AnalysisResult, Judgement, shown
from workspace.controller.reasons import Reason
from workspace.controller.rollouts.rollout_steps import Stage
from workspace.probes.verdicts import ProbeOutcome, ProbeResult
from workspace.rollout_status import MeasureReport, ProbesReport, RolloutPhase


def measures_report(verdict: Judgement) -> tuple[MeasureReport, ...]:
    """Both values of each measure, as text."""
    return tuple(
        MeasureReport(
            name=each.name,
            stable="-" if each.stable is None else shown(each.stable),
            candidate=shown(each.candidate),
            limit=shown(each.limit),
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


def comparing(stage: Stage, result: AnalysisResult | None) -> tuple[RolloutPhase, Reason, str]:
    """What an analysis waits for."""
    # Only once the time is over: before, too few requests are no news.
    if result is not None and result.seconds >= (stage.seconds or 0):
        return (
            RolloutPhase.PAUSED, Reason.INCONCLUSIVE,
            f"The comparison says nothing yet. {result.verdict.text} It goes on by itself; resume skips it.",
        )  # fmt: skip
    if result is not None and result.restarted:
        return (
            RolloutPhase.PAUSED, Reason.INCONCLUSIVE,
            f"A server has started again, and its last counts are lost: versions are compared for {stage.seconds} s "
            "from then.",
        )  # fmt: skip
    return (
        RolloutPhase.PROGRESSING,
        Reason.COMPARING,
        f"Both versions are compared for {stage.seconds} s.",
    )

"""Judges a new version's answers beside those of the version that serves. Pure: answers in, verdicts out.

Only what the serving version answers as expected, and the new one doesn't, is a regression. What both answer
wrongly, and what isn't answered, says nothing. Causes never quote prompts or answers: they are shown where others read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import Final

from modelimage.canonical import check_halves
from workspace.analysis import Outcome
from workspace.probes.probe_set import Agreement, Expectation, Probe
from workspace.probes.server_answers import Answer, Reply, Unanswered
from workspace.probes.steps import StepBudget, TooManySteps


class ProbeOutcome(StrEnum):
    """What one probe says of the new version; metrics have these words."""

    PASSED = "passed"
    FAILED = "failed"
    BOTH_FAILED = "both_failed"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """One probe's result, with a short cause unless it passed."""

    name: str
    outcome: ProbeOutcome
    cause: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What all probes say of a version beside the one that serves. `problem`: why none could be asked."""

    version: str
    stable: str
    verdicts: tuple[ProbeVerdict, ...] = ()
    problem: str = ""

    def count(self, outcome: ProbeOutcome) -> int:
        return sum(each.outcome is outcome for each in self.verdicts)

    @property
    def first(self) -> ProbeVerdict | None:
        """The first that didn't pass, regressions first."""
        order = (ProbeOutcome.FAILED, ProbeOutcome.UNANSWERED, ProbeOutcome.BOTH_FAILED)
        found = [each for each in self.verdicts if each.outcome in order]
        return min(found, key=lambda each: order.index(each.outcome), default=None)

    def outcome(self, allowed: int) -> Outcome:
        """The verdict, if as many of them may not pass."""
        if self.count(ProbeOutcome.FAILED) > allowed:
            return Outcome.FAILED
        # What both versions fail counts as missing: probes that hardly any version
        # passes prove nothing of the new one.
        missing = len(self.verdicts) - self.count(ProbeOutcome.PASSED)
        if (
            self.problem
            or not self.verdicts
            or self.count(ProbeOutcome.UNANSWERED)
            or missing > allowed
        ):
            return Outcome.INCONCLUSIVE
        return Outcome.PASSED

    @property
    def text(self) -> str:
        """One or two sentences, which change only when the result does."""
        if self.problem:
            return f"The probes can't be asked: {self.problem}."
        total, passed = len(self.verdicts), self.count(ProbeOutcome.PASSED)
        said = f"The new version passed {passed} of {total} probes."
        first = self.first
        return said if first is None else f"{said} First {first.name}: {first.cause}."


_WRONG: Final[Mapping[Expectation, str]] = {
    Expectation.EXACT: "the answer isn't the expected text",
    Expectation.CONTAINS: "the answer lacks the expected text",
    Expectation.REGEX: "the answer doesn't match the pattern",
    Expectation.JSON_SCHEMA: "the answer isn't JSON of the schema",
}


_NEW: Final = "the new version "  # and what it does instead of answering


class _Untold(Exception):
    """A probe says nothing; the cause is its message."""


def needs_serving(probe: Probe, new: Reply) -> bool:
    """Whether the serving version has to be asked too: only its answer tells what a wrong one means."""
    if isinstance(new, Unanswered):
        return new.refused
    try:
        return probe.agreement is not None or bool(_wrong(probe, new))
    except _Untold:
        return False


def verdict(probe: Probe, new: Reply, serving: Reply | None) -> ProbeVerdict:
    """What one probe says; `serving` is the serving version's reply if it was needed."""
    try:
        fault = _fault(probe, new, serving, who=_NEW)
        if not fault:
            return ProbeVerdict(probe.name, ProbeOutcome.PASSED)
        if _fails_too(probe, serving):
            cause = f"{fault}, and the serving version fails it too"
            return ProbeVerdict(probe.name, ProbeOutcome.BOTH_FAILED, cause)
    except _Untold as error:
        return ProbeVerdict(probe.name, ProbeOutcome.UNANSWERED, str(error))
    return ProbeVerdict(probe.name, ProbeOutcome.FAILED, fault)


def verdict_alone(probe: Probe, reply: Reply) -> ProbeVerdict:
    """What one probe says of a server by itself: right or wrong. Agreement needs two, and says nothing."""
    try:
        fault = _fault(probe, reply, None)
    except _Untold as error:
        return ProbeVerdict(probe.name, ProbeOutcome.UNANSWERED, str(error))
    return ProbeVerdict(probe.name, ProbeOutcome.FAILED if fault else ProbeOutcome.PASSED, fault)


def _fault(probe: Probe, new: Reply, serving: Reply | None, *, who: str = "") -> str:
    """What is wrong with a reply; nothing if it is as expected. `who` begins what a server does instead."""
    if isinstance(new, Unanswered):
        if not new.refused:
            raise _Untold(f"{who}{new.cause}")
        return f"{who}{new.cause}"
    if probe.agreement is not None:
        return _disagreement(probe.agreement, _answered(serving), new)
    return _wrong(probe, new)


def _fails_too(probe: Probe, serving: Reply | None) -> bool:
    if isinstance(serving, Unanswered) and serving.refused:
        return True
    answer = _answered(serving)
    return probe.agreement is None and bool(_wrong(probe, answer))


def _answered(serving: Reply | None) -> Answer:
    if isinstance(serving, Answer):
        return serving
    raise _Untold(f"the serving version {serving.cause if serving else 'was not asked'}")


def _wrong(probe: Probe, answer: Answer) -> str:
    """What is wrong with an answer by itself."""
    try:
        right = _is_right(probe, answer.text.strip(), StepBudget())
    # Brackets nested thousands deep end `json.loads` before any step is counted.
    except (TooManySteps, RecursionError) as error:
        raise _Untold("checking the answer takes too many steps") from error
    return "" if right else _WRONG[probe.expectation]


def _is_right(probe: Probe, text: str, steps: StepBudget) -> bool:
    if probe.exact is not None:
        return text == probe.exact.strip()
    if probe.contains is not None:
        return probe.contains.strip() in text
    if probe.pattern is not None:
        return probe.pattern.search(text, steps)
    if probe.schema_check is not None:
        try:
            value = json.loads(text)
            check_halves(value, text.encode())
        except ValueError:
            return False
        return probe.schema_check.accepts(value, steps)
    return True


def _disagreement(limits: Agreement, serving: Answer, new: Answer) -> str:
    if not serving.tokens or not new.tokens:
        return (
            ""
            if bool(serving.tokens) == bool(new.tokens)
            else "only one of the versions answers anything"
        )
    same = _same_tokens(serving, new)
    share = same / len(serving.tokens)
    if share < limits.min_share:
        return f"the answers agree in {share:.0%} of the tokens, less than {limits.min_share:.0%}"
    # Up to where they part both versions have read the same; beyond, the numbers are of different texts.
    both = list(zip(serving.tokens, new.tokens, strict=False))[: same + 1]
    gap = sum(ours.logprob - theirs.of(ours.text) for ours, theirs in both) / len(both)
    if gap > limits.max_logprob_gap:
        return (
            f"the serving version's tokens are less probable by a mean of {gap:.2f} nats, more than "
            f"{limits.max_logprob_gap:g}"
        )
    return ""


def _same_tokens(serving: Answer, new: Answer) -> int:
    """How many tokens are the same before the answers part."""
    pairs = zip(serving.tokens, new.tokens, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].text == pair[1].text, pairs))

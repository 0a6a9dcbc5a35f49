"""A Workspace's `spec.rollout`: how one version replaces another, and when the new one is taken back."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any, Final, Self

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from cache_agent.api.kube_objects import NonEmpty, ObjectName, Strict
from workspace.field_types import as_enum, refuse_repeats, refuse_without_effect

_DAY: Final = 86_400
_WEEK: Final = 7 * _DAY
MOST_QUERIES: Final = 8
# The largest share, in percent, of a version that shares requests with as many servers of another.
EVEN_WEIGHT: Final = 50
PLACEHOLDERS: Final = ("namespace", "workspace", "version", "stable")
# A query in which no other placeholder occurs, for Python's and Go's regular expressions. PromQL itself has no `{{`.
FILLABLE: Final = rf"^([^{{]|[{{][^{{]|[{{]?[{{][{{]({'|'.join(PLACEHOLDERS)})[}}][}}])*[{{]?$"

# A share by which a measure may be worse: 0.25 is a quarter.
Share = Annotated[float, Field(ge=0, le=100)]
Bound = Annotated[float, Field(ge=-1e15, le=1e15)]


class Strategy(Enum):
    """How a new version replaces the one that serves."""

    ROLLING = "rolling"
    CANARY = "canary"
    BLUE_GREEN = "blueGreen"
    EXTERNAL = "external"

    @property
    def has_steps(self) -> bool:
        """Whether a new version runs beside the other and is judged before it takes over."""
        return self in (Strategy.CANARY, Strategy.BLUE_GREEN)


class Pause(Strict):
    """Waits: for a time, or until `weightyard rollout resume`."""

    seconds: Annotated[int, Field(ge=1, le=_WEEK)] | None = Field(
        default=None, description="How long; absent, until the rollout is resumed."
    )


class AnalysisStep(Strict):
    """Watches both versions side by side and goes on if the new one is no worse."""

    seconds: Annotated[int, Field(ge=1, le=_DAY)] = Field(
        default=300, description="For how long both versions are compared."
    )


class RolloutStep(Strict):
    """One step of a rollout: exactly one of `weight`, `pause` and `analysis`."""

    # Not 100: after its last step a version is promoted, and gets all requests anyway.
    weight: Annotated[int, Field(ge=1, le=99)] | None = Field(
        default=None,
        description="The share of requests for the new version, in percent. Done when its servers for that are ready.",
    )
    pause: Pause | None = None
    analysis: AnalysisStep | None = None

    @field_validator("pause", "analysis", mode="before")
    @classmethod
    def _given(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML has null for a name without a value, which would be taken for no step."""
        if value is None:
            raise ValueError(f"write `{info.field_name}: {{}}`")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.weight, self.pause, self.analysis)) != 1:
            raise ValueError("give exactly one of weight, pause and analysis")
        return self


# No weight above EVEN_WEIGHT: the defaults have to be possible without a route too.
_CANARY_STEPS: Final = (
    RolloutStep(weight=10), RolloutStep(analysis=AnalysisStep()),
    RolloutStep(weight=50), RolloutStep(analysis=AnalysisStep()),
)  # fmt: skip


class MaxRegression(Strict):
    """How much worse than the version that serves the new one may be."""

    # Added, and not a factor as for the times: beside an error rate of 0, no factor would allow anything.
    error_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01,
        description="More failed requests, as a share of all: 0.01 allows 2 % beside 1 %.",
    )
    time_to_first_token: Share = Field(
        default=0.25,
        description="A longer time to the first token, at its median and 95th percentile.",
    )
    time_per_output_token: Share = Field(
        default=0.25,
        description="A longer time for each further token, at its median and 95th percentile.",
    )
    queue_time: Share = Field(
        default=1.0, description="A longer wait in the queue, at its 95th percentile."
    )
    preemptions: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.1, description="More preemptions for each request."
    )
    # A probes file has 100 at most: one at least has to pass.
    probes: Annotated[int, Field(ge=0, le=99)] = Field(
        default=0, description="How many probes that the serving version passes may fail."
    )


class ConfigMapKey(Strict):
    """One key of a ConfigMap in the Workspace's namespace."""

    name: ObjectName = Field(description="The ConfigMap's name.")
    key: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=253)
    ] = Field(default="probes.yaml", description="The key whose value is the probes file.")


class ProbesSource(Strict):
    """Where the probes file is: exactly one of `configMap` and `attached`."""

    config_map: ConfigMapKey | None = None
    attached: bool = Field(
        default=False,
        description="Asks the probes that `weightyard probes attach` attached to the new version's model image.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.config_map is not None) == self.attached:
            raise ValueError("give exactly one of configMap and attached: true")
        return self


class QueryCondition(Strict):
    """A PromQL query that the operator's Prometheus answers with one number, and the bound that this must keep."""

    name: Annotated[
        str, StringConstraints(pattern=r"^[a-z]([a-z0-9 -]{0,61}[a-z0-9])?$", max_length=63)
    ] = Field(description="What it measures, for people: refused requests.")
    query: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(
        description="The query. {{namespace}}, {{workspace}}, {{version}} and {{stable}} stand for names; the last two "
        "are values of the pods' label weightyard.dev/revision."
    )
    at_most: Bound | None = Field(default=None, description="The highest value that passes.")
    at_least: Bound | None = Field(default=None, description="The lowest value that passes.")

    @field_validator("query")
    @classmethod
    def _fillable(cls, query: str) -> str:
        if not re.search(FILLABLE, query):
            known = ", ".join(f"{{{{{each}}}}}" for each in PLACEHOLDERS)
            raise ValueError(f"unknown placeholder; known are {known}")
        return query

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give exactly one of atMost and atLeast")
        return self

    @property
    def bound(self) -> float:
        """The bound; `at_least` tells which side of it passes."""
        return next(each for each in (self.at_most, self.at_least) if each is not None)


class Analysis(Strict):
    """What the new version is compared by. Too few requests or unreadable metrics decide nothing: the rollout waits."""

    interval_seconds: Annotated[int, Field(ge=2, le=3600)] = Field(
        default=15, description="Seconds between two comparisons."
    )
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=20,
        description="Requests that each version must have answered before they are compared.",
    )
    max_regression: MaxRegression = MaxRegression()
    probes: ProbesSource | None = Field(
        default=None,
        description="Prompts with expected answers, which the new version has to pass before it gets requests.",
    )
    queries: tuple[QueryCondition, ...] = Field(
        default=(), strict=False, max_length=MOST_QUERIES,
        description="Conditions by PromQL, where the operator has named a Prometheus.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        refuse_repeats("queries", [each.name for each in self.queries])
        return self


class Rollout(Strict):
    """How one version replaces the previous."""

    strategy: Annotated[Strategy, as_enum(Strategy)] = Field(
        default=Strategy.ROLLING,
        description="rolling replaces one server after the other; canary gives the new version a growing share of "
        "requests; blueGreen starts it beside the old one and moves all requests at once; external leaves replicas and "
        "weights to another program, such as Argo Rollouts.",
    )
    steps: tuple[RolloutStep, ...] = Field(
        default=(), strict=False, max_length=32,
        description="What canary does, by default a weight of 10, an analysis, a weight of 50, an analysis; or what "
        "blueGreen waits for before it moves requests, by default nothing: pauses only.",
    )  # fmt: skip
    keep_seconds: Annotated[int, Field(ge=0, le=_DAY)] = Field(
        default=600,
        description="blueGreen: how long the old version stays ready after all requests were moved.",
    )
    analysis: Analysis = Analysis()
    history: Annotated[int, Field(ge=1, le=100)] = Field(
        default=10, description="Number of versions that `weightyard rollout undo` can go back."
    )
    restarted_at: NonEmpty | None = Field(
        default=None,
        description="Change it to roll out the same spec again, with tags resolved again.",
    )

    @property
    def given_steps(self) -> tuple[RolloutStep, ...]:
        """The steps, or those that a canary has by default."""
        if not self.strategy.has_steps:
            return ()
        return self.steps or (_CANARY_STEPS if self.strategy is Strategy.CANARY else ())

    @property
    def highest_weight(self) -> int:
        """The largest weight of a step; 0 without."""
        return max((each.weight or 0 for each in self.given_steps), default=0)

    @property
    def compares(self) -> bool:
        """Whether some step is an analysis."""
        return any(each.analysis is not None for each in self.given_steps)

    @model_validator(mode="after")
    def _analysed(self, info: ValidationInfo) -> Self:
        # By what was written, not by its value: each spec has an analysis by default.
        if not self.strategy.has_steps and "analysis" in self.model_fields_set:
            refuse_without_effect(info, "analysis is for strategy: canary or blueGreen")
        return self

    @model_validator(mode="after")
    def _kept(self, info: ValidationInfo) -> Self:
        if self.strategy is not Strategy.BLUE_GREEN and "keep_seconds" in self.model_fields_set:
            refuse_without_effect(info, "keepSeconds is for strategy: blueGreen")
        return self

    @model_validator(mode="after")
    def _fitting_steps(self, info: ValidationInfo) -> Self:
        # Without effect, and so no error in a stored document.
        if self.steps and not self.strategy.has_steps:
            refuse_without_effect(info, "steps are for strategy: canary or blueGreen")
        if self.strategy is Strategy.BLUE_GREEN and not all(each.pause for each in self.steps):
            raise ValueError(
                "steps of blueGreen are pauses: before the requests move, there are none to share or compare"
            )
        if self.strategy is Strategy.CANARY and self.steps and self.steps[0].weight is None:
            raise ValueError(
                "the first of steps must be a weight: before it no request tells anything"
            )
        weights = [each.weight for each in self.steps if each.weight is not None]
        if weights != sorted(weights):
            raise ValueError("weights of steps never fall: let each be at least the one before")
        return self

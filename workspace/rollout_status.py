"""A Workspace's `status.rollout`: where the rollout of a new version stands; all that is kept between decisions."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from cache_agent.api.kube_objects import Count, Reported, ReportedLine, ReportedText, Timestamp

MOST_MEASURES = 32
MOST_PARENTS = 32


class RolloutPhase(StrEnum):
    """How a rollout stands."""

    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    PROMOTING = "Promoting"
    COMPLETED = "Completed"
    FAILED = "Failed"
    ABORTED = "Aborted"


class MeasureReport(Reported):
    """One measure by which the versions were compared. Numbers as text: they are for reading."""

    name: ReportedLine = Field(description="What was measured.")
    stable: ReportedLine = Field(description="The value of the version that serves.")
    candidate: ReportedLine = Field(description="The value of the new version.")
    limit: ReportedLine = Field(description="The highest value of the new version that passes.")
    passed: bool = Field(description="Whether the new version is within the limit.")


class ParentReport(Reported):
    """What one Gateway says of the route."""

    name: ReportedLine = Field(description="The Gateway: its namespace, its name and the listener.")
    accepted: ReportedLine = Field(
        description="Whether it takes the route as it is now: True, False or Unknown."
    )
    resolved: ReportedLine = Field(
        description="Whether it knows the route's backends: True, False or Unknown."
    )
    message: ReportedText = Field(default="", description="What it says about a problem.")


class RouteStatus(Reported):
    """How the route shares requests. Weights are of the new version, in percent."""

    wanted: Count = Field(default=0, description="What the rollout asks for now.")
    written: Count = Field(default=0, description="What the HTTPRoute has.")
    accepted: ReportedLine = Field(
        default="Unknown",
        description="Whether all Gateways have taken the route as it is now: True, False or Unknown.",
    )
    parents: tuple[ParentReport, ...] = Field(
        default=(), max_length=MOST_PARENTS, description="What each Gateway says."
    )


class ProbesReport(Reported):
    """What the probes say of the new version."""

    total: Count = Field(default=0, description="How many probes there are.")
    passed: Count = Field(default=0, description="Those that the new version passed.")
    failed: Count = Field(
        default=0, description="Those that the serving version passes and the new one doesn't."
    )
    first: ReportedLine = Field(
        default="", description="The name of the first that the new version didn't pass."
    )
    cause: ReportedLine = Field(default="", description="Why it didn't pass.")


class RolloutStatus(Reported):
    """Where the rollout of a new version stands."""

    phase: RolloutPhase = Field(description="How the rollout stands.")
    version: ReportedLine = Field(
        description="The new version: the name of its ControllerRevision."
    )
    stable: ReportedLine = Field(description="The version that served before.")
    step: Count = Field(default=0, description="The step at which it is, from 0.")
    steps: Count = Field(
        default=0, description="How many steps there are before the new version takes over."
    )
    since: Timestamp = Field(description="Since when it is at this step.")
    weight: Count = Field(
        default=0, description="The percent of requests that the new version should get."
    )
    attained: Count = Field(
        default=0,
        description="The percent that it gets: by its share of the ready servers, or as all Gateways accepted it.",
    )
    replicas: Count = Field(
        default=0, description="The replicas that are wanted of both versions together."
    )
    in_place: bool = Field(
        default=False,
        description="Whether servers of the old version make room, since there is none for more.",
    )
    reason: ReportedLine = Field(
        default="", description="Why it stands so, as one word for programs."
    )
    message: ReportedText = Field(default="", description="Why it stands so, in whole sentences.")
    measures: tuple[MeasureReport, ...] = Field(
        default=(), max_length=MOST_MEASURES, description="The last comparison of both versions."
    )
    probes: ProbesReport | None = Field(
        default=None, description="What the probes say, once they were asked."
    )

    @property
    def is_open(self) -> bool:
        """Whether the old version still is the one that serves, and steps are left."""
        return self.phase in (RolloutPhase.PROGRESSING, RolloutPhase.PAUSED)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the new version was taken back."""
        return self.phase in (RolloutPhase.FAILED, RolloutPhase.ABORTED)

    @property
    def token(self) -> str:
        """Names this very stop, so that a resume given for it resumes no later one."""
        return f"{self.version}/{self.step}@{self.since}"

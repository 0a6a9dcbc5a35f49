"""The part of a Workspace's spec that says where its server's spans go."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cache_agent.api.kube_objects import NonEmpty, Strict


class Tracing(Strict):
    """Where the server sends its OpenTelemetry spans."""

    endpoint: Annotated[NonEmpty, Field(pattern="^https?://")] = Field(
        description="The collector's address for traces, as vLLM takes it: http://collector.monitoring:4317."
    )

"""A Workspace's `spec.route`: the Gateways by which requests arrive, so that versions can share them by weight."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from cache_agent.api.kube_objects import LABEL_PATTERN, Namespace, ObjectName, Strict

# Gateway API: a wildcard stands for the first label alone.
_HOSTNAME: Final = rf"^(\*\.)?{LABEL_PATTERN}(\.{LABEL_PATTERN})*$"
Hostname = Annotated[str, StringConstraints(pattern=_HOSTNAME, max_length=253)]


class ParentRef(Strict):
    """One Gateway, or one of its listeners."""

    name: ObjectName = Field(description="The Gateway's name.")
    namespace: Namespace | None = Field(
        default=None, description="Its namespace; absent, the Workspace's own."
    )
    section_name: ObjectName | None = Field(
        default=None, description="One of its listeners; absent, all that allow it."
    )


class InferencePools(Strict):
    """Routes to one InferencePool for each version instead of one Service, as llm-d does."""

    endpoint_picker: ObjectName = Field(
        description="The Service of the endpoint picker for the pool NAME, the version that serves."
    )
    new_endpoint_picker: ObjectName = Field(
        description="That of the endpoint picker for the pool NAME--candidate, a new version."
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=9002, description="The port of both."
    )


class Route(Strict):
    """An HTTPRoute of the Workspace's name: requests of these Gateways and hostnames reach its servers."""

    # Gateway API allows an HTTPRoute 32 of these and 16 hostnames.
    parent_refs: tuple[ParentRef, ...] = Field(
        strict=False, min_length=1, max_length=32, description="The Gateways that take requests."
    )
    hostnames: tuple[Hostname, ...] = Field(
        default=(), strict=False, max_length=16,
        description="Hosts of requests: chat.example.com or *.example.com; none means every host of the Gateways.",
    )  # fmt: skip
    inference_pools: InferencePools | None = None

    @model_validator(mode="after")
    def _distinct_parents(self) -> Self:
        sections: dict[tuple[str | None, str], list[str | None]] = {}
        for each in self.parent_refs:
            sections.setdefault((each.namespace, each.name), []).append(each.section_name)
        for found in sections.values():
            # Gateway API: of several references to one Gateway, each must name a listener of its own.
            if len(found) > 1 and (None in found or len(set(found)) < len(found)):
                raise ValueError("parentRefs has a Gateway twice: give each its own sectionName")
        return self

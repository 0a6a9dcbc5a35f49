"""A Workspace's `spec.runtime`: the inference server, its settings, and the adapters that it serves."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final, Self

from pydantic import Field, ValidationInfo, model_validator

from cache_agent.api.kube_objects import NonEmpty, SecretName, Strict
from workspace.field_types import (
    AdapterName,
    EnvName,
    Port,
    Text,
    as_enum,
    refuse_repeats,
    refuse_without_effect,
)
from workspace.trace_context import Tracing

DEFAULT_PORT: Final = 8000
# Where the leader of a group waits for the workers. Messages then take ports that the system chooses.
GROUP_PORT: Final = 29_500


class Engine(Enum):
    """The inference server."""

    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"
    TGI = "tgi"
    SGLANG = "sglang"


class SecretKey(Strict):
    """One key of a Secret in the Workspace's namespace."""

    name: SecretName = Field(description="The Secret's name.")
    key: NonEmpty = Field(description="The key whose value is used.")


class EnvVar(Strict):
    """One environment variable of the server: a value, or a Secret's key."""

    name: EnvName = Field(description="The variable's name.")
    value: Text | None = Field(default=None, description="Its value.")
    secret: SecretKey | None = None

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if (self.value is None) == (self.secret is None):
            raise ValueError("give exactly one of value and secret")
        return self


class Adapter(Strict):
    """A LoRA adapter: its name in requests, and its image."""

    name: AdapterName = Field(description="The model name that requests for it use.")
    image: NonEmpty = Field(description="Its image: registry.example/team/adapter:tag.")


class Runtime(Strict):
    """The inference server and its settings. `args` override derived arguments."""

    engine: Annotated[Engine, as_enum(Engine)] = Engine.VLLM
    image: NonEmpty | None = Field(
        default=None, description="The server's container image; by default the engine's own."
    )
    args: tuple[Text, ...] = Field(
        default=(),
        strict=False,
        max_length=512,
        description="Additional arguments of the server; they override derived ones.",
    )
    env: tuple[EnvVar, ...] = Field(
        default=(), strict=False, max_length=256, description="Environment variables of the server."
    )
    adapters: tuple[Adapter, ...] = Field(
        default=(), strict=False, max_length=64, description="LoRA adapters served with the model."
    )
    port: Port = Field(
        default=DEFAULT_PORT, description="The server's port; with `up`, 0 takes a free one."
    )
    served_model_name: NonEmpty | None = Field(
        default=None, description="The name requests use; by default the Workspace's."
    )
    context_length: Annotated[int, Field(ge=16, le=1 << 24)] | None = Field(
        default=None,
        description="Tokens of prompt and answer together; by default what the model and memory allow.",
    )

    tracing: Tracing | None = Field(
        default=None,
        description="Spans of vLLM's start and requests, in one trace with the model's way to the node; needs an image "
        "with vllm[otel].",
    )

    startup_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = Field(
        default=None,
        description=(
            "Seconds after which a start fails: in total for a pod or compose service (by default enough for slow "
            "disks), without progress for `up` (by default 300)."
        ),
    )

    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=120,
        description="Seconds that a stopping server may take to finish its running requests.",
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        refuse_repeats("env", [each.name for each in self.env])
        refuse_repeats("adapters", [each.name for each in self.adapters])
        return self

    @model_validator(mode="after")
    def _traceable(self, info: ValidationInfo) -> Self:
        if self.tracing is not None and self.engine is not Engine.VLLM:
            refuse_without_effect(info, "tracing is for the engine vllm")
        return self

"""The interface of the places where deployments run: a namespace of a cluster, or this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from weightyard.mlflow_deployments.documents import Found, Json


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a deployment answers while it is reached: an address, and the model's name in requests."""

    url: str
    model: str


class Backend(Protocol):
    """Keeps Workspaces and serves them. All methods raise WeightyardError."""

    namespace: str | None

    def find(self, name: str) -> Found | None:
        """The Workspace of a name, whoever made it; None without one. Raises what keeps deployments from being made."""

    def all(self) -> list[Found]:
        """All Workspaces."""

    def apply(self, document: Json, previous: Json | None, *, timeout: float | None) -> None:
        """Create a Workspace, or put it in the place of `previous`, and wait until it serves.

        Raises NotServing when it won't, TimedOut after `timeout` seconds, AlreadyExists where the name is taken.
        Interrupted, it leaves a state that another call goes on from.
        """

    def remove(self, name: str) -> None:
        """Remove a Workspace; a missing one is fine."""

    def reach(self, name: str) -> AbstractContextManager[Endpoint]:
        """An address for requests, while the context lasts."""


def served_name(document: dict[str, Any]) -> str:
    """The model's name in requests to a Workspace."""
    runtime = document["spec"].get("runtime") or {}
    return str(runtime.get("servedModelName") or document["metadata"]["name"])

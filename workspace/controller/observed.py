"""What reconcile looks at, and what it answers: values only.

Objects stay the plain documents that the API server gives; the few facts that are read often have names here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import WeightyardError
from workspace.controller.nodes import Node
from workspace.controller.objects import has_labels
from workspace.render import names
from workspace.render.kubernetes import Environment
from workspace.render.release import Resolved

Json = dict[str, Any]

KEDA_GROUP: Final = "keda.sh"


@dataclass(frozen=True, slots=True)
class Reference:
    """One object of the Workspace's namespace."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything known at one moment.

    `objects` are those of the namespace that carry the Workspace's label or a name that it needs, pods included.
    `resolved` is what the registry answered, or its error; None when it wasn't asked. `wanted` is the scaler's number
    of replicas; None where nothing scales or it doesn't know yet. `now` is RFC 3339.
    """

    document: Json
    objects: tuple[Json, ...]
    nodes: tuple[Node, ...]
    now: str
    environment: Environment
    resolved: Resolved | WeightyardError | None = None
    wanted: int | None = None
    groups: frozenset[str] = frozenset()

    @property
    def uid(self) -> str:
        return str(self.document["metadata"]["uid"])

    def find(self, kind: str, name: str) -> Json | None:
        """One object; None when it isn't there."""
        for each in self.objects:
            if each["kind"] == kind and each["metadata"]["name"] == name:
                return each
        return None

    def pods(self, role: str) -> list[Json]:
        """The Workspace's own pods of a role that aren't on their way out, by name."""
        name = self.document["metadata"]["name"]
        found = [
            each
            for each in self.objects
            if each["kind"] == "Pod"
            and has_labels(each, names.selector(name, role))
            and "deletionTimestamp" not in each["metadata"]
        ]
        return sorted(found, key=lambda each: str(each["metadata"]["name"]))


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of one object, by our field manager."""

    document: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one object, if it is still the one that was seen."""

    reference: Reference
    uid: str


Action = Apply | Delete


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do. `status` None leaves it as it is; `ask_registry` wants `resolved` and another call."""

    actions: tuple[Action, ...] = ()
    status: Json | None = None
    ask_registry: bool = False


def reference(document: Json) -> Reference:
    return Reference(str(document["kind"]), str(document["metadata"]["name"]))

"""What lists and watches select: objects by kind, labels and fields, and the events of a change for each watcher."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from aiohttp import web

Json = dict[str, Any]
_COMMA = re.compile(r",(?![^(]*\))")
_ANY_OF = re.compile(r"(\S+) in \(([^)]+)\)")
# Fields besides name and namespace by which a server selects objects of a kind.
_FIELDS = {
    "Event": (
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
        "source",
    ),
    "Pod": ("spec.nodeName", "status.phase"),
}


@dataclass(frozen=True)
class Filter:
    """Which objects a list or watch is about: a kind, labels with their values, labels that must be there, fields.

    `any_of` are labels of which one of some values must be there: `name in (a,b)`.
    """

    kind: str
    values: tuple[tuple[str, str], ...]
    present: tuple[str, ...]
    fields: tuple[tuple[str, str], ...] = ()
    any_of: tuple[tuple[str, frozenset[str]], ...] = ()

    @classmethod
    def of(cls, request: web.Request, kind: str) -> Filter:
        terms = [each for each in _COMMA.split(request.query.get("labelSelector", "")) if each]
        sets = [match for each in terms if (match := _ANY_OF.fullmatch(each))]
        pairs = [each.split("=", 1) for each in terms if "=" in each]
        present = tuple(e for e in terms if "=" not in e and not _ANY_OF.fullmatch(e))
        selected = request.query.get("fieldSelector", "").split(",")
        fields = tuple(
            (name, value) for name, _, value in (s.partition("=") for s in selected if s)
        )
        if not {name for name, _ in fields} <= {
            "metadata.name",
            "metadata.namespace",
            *_FIELDS.get(kind, ()),
        }:
            raise web.HTTPBadRequest(text="field label not supported")
        any_of = tuple((found[1], frozenset(found[2].split(","))) for found in sets)
        return cls(kind, tuple((name, value) for name, value in pairs), present, fields, any_of)

    def matches(self, document: Json | None) -> bool:
        if document is None or document["kind"] != self.kind:
            return False
        labels = document["metadata"].get("labels") or {}
        if any(_field(document, name) != value for name, value in self.fields):
            return False
        if any(labels.get(name) not in values for name, values in self.any_of):
            return False
        return all(name in labels for name in self.present) and set(self.values) <= set(
            labels.items()
        )


@dataclass(frozen=True)
class Change:
    """One write. `after` is None for a deletion, whose `before` is the last state."""

    after: Json | None
    before: Json

    @property
    def version(self) -> int:
        return version_of(self.after or self.before)

    def event(self, wanted: Filter) -> Json | None:
        """What a watch with this filter is told: an object that no longer matches was deleted, as far as it can see."""
        was, is_ = wanted.matches(self.before), wanted.matches(self.after)
        if is_:
            kind = "MODIFIED" if was and self.before is not self.after else "ADDED"
            return {"type": kind, "object": self.after}
        if not was:
            return None
        version = {"resourceVersion": str(self.version)}
        gone = {**self.before, "metadata": {**self.before["metadata"], **version}}
        return {"type": "DELETED", "object": gone}


def _field(document: Json, path: str) -> str:
    """The value of a selectable field; one that isn't there is empty."""
    if path == "source":  # of an Event: whoever wrote it, as either generation of the API has it
        path = "source.component" if "source" in document else "reportingComponent"
    found: Any = document
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return "" if found is None else str(found)


def version_of(document: Json) -> int:
    return int(document["metadata"]["resourceVersion"])

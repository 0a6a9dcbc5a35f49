"""What lists and watches of the HTTP test server are about: filters, changes, and the events that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

Json = dict[str, Any]


@dataclass(frozen=True)
class Filter:
    """Which objects a list or watch is about: a kind, labels with their values, labels that must be there, a name."""

    kind: str
    values: tuple[tuple[str, str], ...]
    present: tuple[str, ...]
    name: str = ""

    @classmethod
    def of(cls, request: web.Request, kind: str) -> Filter:
        terms = [each for each in request.query.get("labelSelector", "").split(",") if each]
        pairs = [each.split("=", 1) for each in terms if "=" in each]
        present = tuple(each for each in terms if "=" not in each)
        field, _, named = request.query.get("fieldSelector", "metadata.name=").partition("=")
        assert field == "metadata.name", field
        return cls(kind, tuple((name, value) for name, value in pairs), present, named)

    def matches(self, document: Json | None) -> bool:
        if document is None or document["kind"] != self.kind:
            return False
        if self.name and document["metadata"]["name"] != self.name:
            return False
        labels = document["metadata"].get("labels") or {}
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


def version_of(document: Json) -> int:
    return int(document["metadata"]["resourceVersion"])

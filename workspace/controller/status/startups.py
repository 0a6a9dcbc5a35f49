"""The last start of each version in a Workspace's status. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import ValidationError

from workspace.controller.conditions import READY
from workspace.controller.observation.objects import condition, has_labels
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.pod_start import (
    NO_NEWS,
    is_watched,
    newest,
    seconds_of,
    startup_of,
)
from workspace.controller.observation.revisions import Revision
from workspace.render import names
from workspace.startup import MOST_STARTS, StageName, Startup

Json = dict[str, Any]

# Seconds after the first health check for which the first token is waited for. One that comes later says nothing of the
# start.
_PATIENCE: Final = 3600.0


def startups(observed: Observed, versions: Iterable[Revision]) -> Json:
    """The status's `startup`: the entries of versions, the newest first; those of versions that are gone end.

    Law: written into the status, the next call returns the same.
    """
    before = {entry.version: entry for entry in entries_of(observed.document)}
    servers = observed.pods(names.SERVER)
    found = []
    # A version that returns has a higher number as well.
    by_id = {each.id: each for each in sorted(versions, key=lambda each: each.number)}
    for version in by_id.values():
        pod = newest([each for each in servers if has_labels(each, {names.REVISION: version.id})])
        entry = before.get(version.number)
        if pod is not None:
            uid = str(pod["metadata"].get("uid"))
            entry = startup_of(
                pod, version.number, published=observed.published.get(uid, ()),
                news=observed.starts.get(uid, NO_NEWS), before=entry,
            )  # fmt: skip
        if entry is not None:
            found.append(entry)
    found.sort(key=lambda each: each.version, reverse=True)
    return {"startup": [each.to_document() for each in found[:MOST_STARTS]]} if found else {}


def entries_of(document: Json) -> list[Startup]:
    """The entries in a Workspace's status; what can't be read is left out."""
    found = []
    for each in (document.get("status") or {}).get("startup") or ():
        try:
            found.append(Startup.model_validate(each))
        except ValidationError:
            continue
    return found


def watched_pods(observed: Observed, now: float) -> frozenset[str]:
    """The uids of the servers whose starts aren't fully known: the newest of each version."""
    entries = {each.pod: each for each in entries_of(observed.document)}
    servers: dict[str, list[Json]] = {}
    for pod in observed.pods(names.SERVER):
        version = (pod["metadata"].get("labels") or {}).get(names.REVISION, "")
        servers.setdefault(version, []).append(pod)
    found = filter(None, map(newest, servers.values()))
    return frozenset(
        str(pod["metadata"]["uid"])
        for pod in found
        if is_watched(pod, entries.get(pod["metadata"]["name"]), now, patience=_PATIENCE)
    )


def completed(before: Json, after: Json) -> list[Startup]:
    """The starts that are complete in a Workspace's document and weren't in an earlier one: each is counted once."""
    known = {_identity(each) for each in entries_of(before) if each.total is not None}
    return [
        each
        for each in entries_of(after)
        if each.total is not None and _identity(each) not in known
    ]


def first_tokens(before: Json, after: Json) -> list[Startup]:
    """The starts whose first token a document has and an earlier one hadn't."""
    known = {_identity(each) for each in entries_of(before) if StageName.FIRST_TOKEN in each.ends}
    return [
        each
        for each in entries_of(after)
        if StageName.FIRST_TOKEN in each.ends and _identity(each) not in known
    ]


def became_ready(before: Json, after: Json) -> float | None:
    """The seconds that a Workspace wasn't Ready, if by a document it is and by an earlier one it wasn't."""
    earlier, now = condition(before, READY), condition(after, READY)
    if now.get("status") != "True" or earlier.get("status") == "True":
        return None
    since = earlier.get("lastTransitionTime") or before["metadata"].get("creationTimestamp")
    began, ended = seconds_of(since), seconds_of(now.get("lastTransitionTime"))
    # Times without a zone, or none at all: somebody else wrote them.
    return None if began is None or ended is None else max(0.0, ended - began)


def _identity(entry: Startup) -> tuple[str, str]:
    return entry.pod, entry.started_at

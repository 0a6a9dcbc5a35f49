"""An API server in memory that does what bites controllers: it fills defaults, drops what it doesn't know, rewrites
quantities, keeps who owns which field, and takes an owner's objects away with it.

Server-side apply follows its documentation: fields that a manager no longer applies vanish unless another owns them; a
field that another manager owns with another value conflicts unless forced; applying what is there writes nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

from cache_agent.api import definitions
from tests.workspace import openapi
from tests.workspace.controller.defaults import fill_defaults
from workspace import crd
from workspace.render.quantities import canonical

Json = dict[str, Any]
Path = tuple[Any, ...]

VERSION = openapi.OLDEST
OWN_SCHEMAS = {
    each["spec"]["names"]["kind"]: each["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for each in (
        crd.definition(), definitions.cached_model_definition(), definitions.node_cache_definition(),
    )
}  # fmt: skip
# Field -> keys of its items, as the built-in types declare them; other lists are atomic.
KEYS = {
    "containers": ("name",), "env": ("name",), "volumes": ("name",), "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",), "conditions": ("type",), "imagePullSecrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}  # fmt: skip
# Fields that map names to texts, of which an empty one is kept.
_MAPS = {"labels", "annotations", "matchLabels", "nodeSelector", "data"}
SERVER_METADATA = {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"}


class Conflict(Exception):
    """Another manager owns a field, or a precondition doesn't hold."""

    status = 409


class Missing(Exception):
    """There is no such object."""

    status = 404


def leaves(value: Any, path: Path = (), field: str = "") -> dict[Path, Any]:
    """Every field that a manager can own."""
    found: dict[Path, Any] = {}
    if isinstance(value, dict) and value:
        for name, each in value.items():
            found |= leaves(each, (*path, name), name)
    elif isinstance(value, list) and field in KEYS:
        for each in value:
            key = tuple(each.get(k) for k in KEYS[field])
            found |= leaves(each, (*path, key), "")
    elif path or value:  # nothing at all is no field
        found[path] = value
    return found


def merge(live: Any, wanted: Any, field: str = "") -> Any:
    """Live with wanted on top."""
    if isinstance(live, dict) and isinstance(wanted, dict):
        return {
            k: merge(live.get(k), wanted[k], k) if k in wanted else live[k]
            for k in {**live, **wanted}
        }
    if isinstance(live, list) and isinstance(wanted, list) and field in KEYS:
        keys = KEYS[field]
        new = {tuple(each.get(k) for k in keys): each for each in wanted}
        kept = [
            merge(each, new.pop(key, {}))
            for each in live
            for key in [tuple(each.get(k) for k in keys)]
        ]
        return kept + list(new.values())
    return copy.deepcopy(wanted)


def merge_json(live: Any, patch: Any) -> Any:
    """RFC 7386: null takes a member away, an object goes on inside, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    out = dict(live) if isinstance(live, dict) else {}
    for name, each in patch.items():
        if each is None:
            out.pop(name, None)
        else:
            out[name] = merge_json(out.get(name), each)
    return out


def without(value: Any, path: Path, field: str = "") -> Any:
    """A value less one leaf, and less what it leaves empty."""
    step, rest = path[0], path[1:]
    if isinstance(value, list):
        keys = KEYS[field]
        out = []
        for each in value:
            if tuple(each.get(k) for k in keys) != step:
                out.append(each)
            # An item goes with its last field; what identifies it stays until then.
            elif rest and set(kept := each if rest[0] in keys else without(each, rest)) - set(keys):
                out.append(kept)
        return out
    if not isinstance(value, dict) or step not in value:
        return value
    if not rest:
        return {k: v for k, v in value.items() if k != step}
    inner = without(value[step], rest, step)
    return {k: (inner if k == step else v) for k, v in value.items() if k != step or inner}


def ended_items(gone: set[Path], kept: set[Path]) -> set[Path]:
    """The items of lists in which a manager had fields and nobody has any more: they go whole, with their defaults."""

    def items(paths: set[Path]) -> set[Path]:
        return {
            path[: number + 1]
            for path in paths
            for number, step in enumerate(path)
            if isinstance(step, tuple)
        }

    return items(gone) - items(kept)


def without_item(value: Any, path: Path, field: str = "") -> Any:
    """A value less one item of a list, or less the list if that was its last."""
    step, rest = path[0], path[1:]
    if isinstance(value, list):
        keyed = [(each, tuple(each.get(k) for k in KEYS[field]) == step) for each in value]
        return [
            without_item(each, rest) if is_it else each
            for each, is_it in keyed
            if rest or not is_it
        ]
    if not isinstance(value, dict) or step not in value:
        return value
    inner = without_item(value[step], rest, step)
    return {k: (inner if k == step else v) for k, v in value.items() if k != step or inner}


def normalized(document: Json) -> Json:
    """A document as the server keeps it: known fields only, quantities canonical, empty texts gone."""
    name = openapi.schema_name(document, VERSION)
    if name is not None:
        document = openapi.without_unknown(document, {"$ref": f"#/$defs/{name}"}, VERSION)
    elif document["kind"] in OWN_SCHEMAS:
        known = openapi.without_unknown(document, OWN_SCHEMAS[document["kind"]], VERSION)
        return {**known, "metadata": document["metadata"]}
    if document["kind"] == "ControllerRevision":
        return document  # its data is opaque
    tidy: Json = _tidy(document)
    return tidy


def _tidy(value: Any, field: str = "") -> Any:
    if isinstance(value, dict):
        if field in ("requests", "limits", "hard", "default", "defaultRequest"):
            return {k: canonical(str(v)) for k, v in value.items()}
        if field == "limits":
            return {k: canonical(str(v)) for k, v in value.items()}
        if field in _MAPS:
            return value
        return {k: _tidy(v, k) for k, v in value.items() if v is not None and v != ""}
    if isinstance(value, list):
        return [_tidy(each) for each in value]
    return canonical(value) if field == "sizeLimit" and isinstance(value, str) else value


class FakeApi:
    """The objects of one cluster. `writes` counts what changed something."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.managers: dict[tuple[str, str, str], dict[str, set[Path]]] = {}
        self.writes: list[str] = []
        self.watchers: list[Callable[[str, Json], None]] = []
        self._numbers = itertools.count(1)
        self._uids = itertools.count(1)
        self.now = "2026-01-01T00:00:00Z"  # when objects are created

    @staticmethod
    def key(document: Json) -> tuple[str, str, str]:
        metadata = document["metadata"]
        return document["kind"], metadata.get("namespace", ""), metadata["name"]

    def go_back(self, before: FakeApi) -> None:
        """Everything is as in an earlier copy, versions too, and nobody is told. Only uids are never given again."""
        copied = copy.deepcopy((before.objects, before.managers))
        self.objects, self.managers = copied
        self._numbers = copy.copy(before._numbers)

    def copied(self) -> FakeApi:
        """A copy to go back to."""
        made = FakeApi()
        made.go_back(self)
        return made

    def get(self, kind: str, namespace: str, name: str) -> Json:
        try:
            return copy.deepcopy(self.objects[kind, namespace, name])
        except KeyError:
            raise Missing(f"{kind} {namespace}/{name}") from None

    def list(
        self, kind: str, namespace: str | None = None, labels: dict[str, str] | None = None
    ) -> list[Json]:
        return [
            copy.deepcopy(each)
            for (k, ns, _), each in sorted(self.objects.items())
            if k == kind
            and namespace in (None, ns)
            and (labels or {}).items() <= (each["metadata"].get("labels") or {}).items()
        ]

    def apply(
        self, document: Json, *, manager: str, force: bool = True, status: bool = False
    ) -> Json:
        """Server-side apply of an object, or of its status alone."""
        key = self.key(document)
        wanted = self._wanted(document, status)
        live = self.objects.get(key)
        version = document["metadata"].get("resourceVersion")
        if version is not None and (live or document)["metadata"]["resourceVersion"] != version:
            raise Conflict("the object has been modified")
        if live is None:
            if status:
                raise Missing(str(key))
            return self._create(document, {manager: set(leaves(self._body(wanted)))})
        owners = self.managers[key]
        mine = leaves(self._body(wanted))
        there = leaves(self._body(live))
        for other, fields in owners.items():
            clash = {p for p in fields & set(mine) if other != manager and there.get(p) != mine[p]}
            if clash and not force:
                raise Conflict(f"{other} owns {clash}")
            fields.difference_update(clash)
        scope = {p for p in owners.get(manager, set()) if (p[0] == "status") == status}
        gone = scope - set(mine)
        others = set().union(*(f for m, f in owners.items() if m != manager))
        updated = live
        for path in ended_items(gone, set(mine) | others):
            updated = without_item(updated, path)
        for path in gone - others:
            updated = without(updated, path)
        updated = merge(updated, wanted)
        owners[manager] = (owners.get(manager, set()) - scope) | set(mine)
        return self._store(key, updated)

    def update(self, kind: str, namespace: str, name: str, change: Callable[[Json], None],
               *, manager: str = "someone") -> Json:  # fmt: skip
        """Read, change, write back, as `kubectl edit` does; what changed is the writer's from then on."""
        before = self.get(kind, namespace, name)
        after = copy.deepcopy(before)
        change(after)
        after = normalized(after)
        key = (kind, namespace, name)
        old, new = leaves(self._body(before)), leaves(self._body(after))
        changed = {p for p in new if p not in old or old[p] != new[p]}
        for fields in self.managers[key].values():
            fields.difference_update(changed | (set(old) - set(new)))
        self.managers[key].setdefault(manager, set()).update(changed)
        return self._store(key, after)

    def merge_patch(
        self, kind: str, name: str, patch: Json, *, namespace: str = "", manager: str = "someone"
    ) -> Json:
        """RFC 7386; with a resourceVersion, only if the object is still that one."""
        found = self.get(kind, namespace, name)
        version = patch.get("metadata", {}).get("resourceVersion")
        if version is not None and version != found["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")

        def change(document: Json) -> None:
            patched = merge_json(document, patch)
            document.clear()
            document.update(patched)

        return self.update(kind, namespace, name, change, manager=manager)

    def create(self, document: Json, *, manager: str = "someone") -> Json:
        if self.key(document) in self.objects:
            raise Conflict("already exists")
        return self._create(document, {manager: set(leaves(self._body(normalized(document))))})

    def delete(self, kind: str, namespace: str, name: str, *, uid: str | None = None) -> None:
        found = self.get(kind, namespace, name)
        if uid is not None and found["metadata"]["uid"] != uid:
            raise Conflict("precondition failed: another uid")
        key = (kind, namespace, name)
        del self.objects[key], self.managers[key]
        # A deletion is a write too: the last state has a version of its own.
        found["metadata"]["resourceVersion"] = str(next(self._numbers))
        self._written("delete", found)
        for each in list(self.objects.values()):
            owners = each["metadata"].get("ownerReferences") or ()
            if any(owner["uid"] == found["metadata"]["uid"] for owner in owners):
                k, ns, n = self.key(each)
                if (k, ns, n) in self.objects:
                    self.delete(k, ns, n)

    def _wanted(self, document: Json, status: bool) -> Json:
        wanted = normalized(document)
        return (
            {"status": wanted.get("status", {})}
            if status
            else {k: v for k, v in wanted.items() if k != "status"}
        )

    @staticmethod
    def _body(document: Json) -> Json:
        """What managers own: not what the server itself writes."""
        metadata = {
            k: v for k, v in document.get("metadata", {}).items() if k not in SERVER_METADATA
        }
        rest = {k: v for k, v in document.items() if k not in ("apiVersion", "kind", "metadata")}
        named = {k: v for k, v in metadata.items() if k not in ("name", "namespace")}
        return {**rest, **({"metadata": named} if named else {})}

    def _create(self, document: Json, owners: dict[str, set[Path]]) -> Json:
        created = normalized(document)
        created["metadata"] = created["metadata"] | {
            "uid": f"uid-{next(self._uids)}", "generation": 1, "creationTimestamp": self.now,
        }  # fmt: skip
        key = self.key(created)
        self.managers[key] = owners
        return self._store(key, created)

    def _store(self, key: tuple[str, str, str], document: Json) -> Json:
        document = fill_defaults(document)
        before = self.objects.get(key)
        if before is not None and _unversioned(before) == _unversioned(document):
            return copy.deepcopy(before)
        if before is not None and before.get("spec") != document.get("spec"):
            document["metadata"]["generation"] = before["metadata"]["generation"] + 1
        document["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[key] = document
        self._written("write", document)
        return copy.deepcopy(document)

    def _written(self, verb: str, document: Json) -> None:
        self.writes.append(f"{verb} {'/'.join(self.key(document))}")
        for watcher in self.watchers:
            watcher("DELETED" if verb == "delete" else "MODIFIED", copy.deepcopy(document))


def _unversioned(document: Json) -> Json:
    metadata = {
        k: v for k, v in document["metadata"].items() if k not in ("resourceVersion", "generation")
    }
    return {**document, "metadata": metadata}

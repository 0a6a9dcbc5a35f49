"""A view of the page: rows by section and id, bounded, and the change from one view to the next. Pure.

A row is a JSON object without empty values. A browser keeps the rows by the same ids and applies changes to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Row = dict[str, Any]
Section = dict[str, Row]
View = dict[str, Section]

# What a page shows at most. A browser draws nodes by models in a frame's time, and people read no more.
MOST_NODES: Final = 200
MOST_MODELS: Final = 50
MOST_MOVES: Final = 200
MOST_WORKSPACES: Final = 500
MOST_PROBLEMS: Final = 100


# How the id of a model begins whose key a node doesn't know yet; its CachedModel's name follows.
UNKNOWN_MODEL: Final = "name:"


@dataclass(frozen=True, slots=True)
class NodeRows:
    """What is shown of one node. `models` and `cells` are by model id, `names`: ids by CachedModel, where known.

    Of a node that isn't shown, its problems alone are.
    """

    name: str
    node: Row
    models: Mapping[str, Row] = field(default_factory=dict)
    cells: Mapping[str, Row] = field(default_factory=dict)
    moves: Mapping[str, Row] = field(default_factory=dict)
    problems: Sequence[Row] = ()
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PageLimits:
    """How much of each section a view has."""

    nodes: int = MOST_NODES
    models: int = MOST_MODELS
    moves: int = MOST_MOVES
    workspaces: int = MOST_WORKSPACES
    problems: int = MOST_PROBLEMS


def compose(
    about: Row,
    nodes: Sequence[NodeRows],
    workspaces: Mapping[str, Row],
    problems: Iterable[Row] = (),
    limits: PageLimits = PageLimits(),
    *,
    names: Mapping[str, str] = {},
) -> View:
    """One view of some nodes and Workspaces. What exceeds a limit is counted in `about.leftOut`.

    Shown are `shown_nodes`, models that most of them have, and `shown_workspaces`. `names`: ids by CachedModel that are
    known besides.
    """
    shown = sorted(shown_nodes(nodes, limits.nodes), key=lambda each: each.name)
    known = {**names, **{name: key for each in nodes for name, key in each.names.items()}}
    models, cells, every = _models(shown, known, limits.models)
    moves = [item for each in shown for item in each.moves.items()]
    said = [*problems, *(problem for each in nodes for problem in each.problems)]
    left = {
        "nodes": len(nodes) - len(shown),
        "models": every - len(models),
        "moves": len(moves) - limits.moves,
        "workspaces": len(workspaces) - limits.workspaces,
        "problems": len(said) - limits.problems,
    }
    left = {name: count for name, count in left.items() if count > 0}
    return {
        "about": {"": {**about, **({"leftOut": left} if left else {})}},
        "nodes": {each.name: each.node for each in shown},
        "models": models,
        "cells": cells,
        "moves": dict(moves[: limits.moves]),
        "workspaces": {
            name: workspaces[name]
            for name in sorted(shown_workspaces(workspaces, limits.workspaces))
        },
        # By their words: a problem that stays is the same row, whatever comes before it.
        "problems": {
            f"{each.get('where', '')}: {each.get('what', '')}": each
            for each in said[: limits.problems]
        },
    }


def shown_nodes(nodes: Iterable[NodeRows], most: int = MOST_NODES) -> list[NodeRows]:
    """The nodes that a view shows: those with problems first, then those with transfers."""
    return sorted(nodes, key=lambda each: (not each.problems, not each.moves, each.name))[:most]


def shown_workspaces(workspaces: Mapping[str, Row], most: int = MOST_WORKSPACES) -> set[str]:
    """The Workspaces that a view shows: those that aren't ready first."""
    order = sorted(workspaces, key=lambda name: (workspaces[name].get("ready") is True, name))
    return set(order[:most])


def difference(before: View, after: View) -> Row | None:
    """The change from one view to the next: rows to `set` and ids that are `gone`, by section; None without any.

    Law: `apply(before, difference(before, after)) == after`.
    """
    written: View = {}
    gone: dict[str, list[str]] = {}
    for name in {**before, **after}:
        old, new = before.get(name, {}), after.get(name, {})
        # Identity first: most rows are the same objects as before.
        changed = {
            key: row for key, row in new.items() if (was := old.get(key)) is not row and was != row
        }
        left = [key for key in old if key not in new]
        if changed:
            written[name] = changed
        if left:
            gone[name] = left
    return {"set": written, "gone": gone} if written or gone else None


def apply(before: View, change: Row | None) -> View:
    """The view after a change, as a browser makes it."""
    if change is None:
        return before
    after = {name: dict(rows) for name, rows in before.items()}
    for name, keys in change["gone"].items():
        for key in keys:
            after[name].pop(key, None)
    for name, rows in change["set"].items():
        after.setdefault(name, {}).update(rows)
    return after


def _models(
    nodes: Sequence[NodeRows], names: Mapping[str, str], most: int
) -> tuple[Section, Section, int]:
    """The models that most nodes have, their cells by `node/model`, and how many models there are in all."""
    rows: Section = {}
    count: Counter[str] = Counter()
    # A node that has not begun knows a model by its CachedModel alone; another may know its key.
    known = {UNKNOWN_MODEL + name: key for name, key in names.items()}
    for each in nodes:
        for model in each.cells:
            count[known.get(model, model)] += 1
        for model, row in each.models.items():
            key = known.get(model, model)
            if key == model or key not in rows:
                rows[key] = row
    chosen = sorted(rows, key=lambda model: (-count[model], model))[:most]
    kept = sorted(chosen, key=lambda model: (str(rows[model].get("name", "")), model))
    shown = set(kept)
    cells = {
        f"{each.name}/{key}": row
        for each in nodes
        for model, row in each.cells.items()
        if (key := known.get(model, model)) in shown
    }
    return {model: rows[model] for model in kept}, cells, len(rows)

"""Generates the tables of docs/operations.md: metrics of the agent and the controller, lines of the agent's log.

python scripts/operations_docs.py     write them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cache_agent.node.metrics import (
    COUNTERS,
    ENGINE_COUNTERS,
    GAUGES,
    HISTOGRAMS,
    MODEL_GAUGES,
    PREFIX,
    MetricRow,
)
from cache_agent.observability.log_lines import LINES, NOTES
from workspace.activator import metrics as activator
from workspace.controller.process import metrics as controller
from workspace.controller.process.log_events import EVENTS

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"


def page(text: str) -> str:
    """The page with its generated tables, each between `<!-- NAME -->` and `<!-- end -->`."""
    tables = {
        "metrics": _metrics(), "controller metrics": _controller_metrics(),
        "model metrics": _model_metrics(), "activator metrics": _activator_metrics(),
        "log": _log(), "controller log": _controller_log(),
    }  # fmt: skip
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        head, found, rest = text.partition(start)
        _, ended, tail = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{PAGE.name} has no place for the table {name!r}")
        text = "".join((head, start, *(f"{line}\n" for line in table), end, tail))
    return text


def _metrics() -> Iterator[str]:
    yield "| Metric | Type | Labels | Meaning |\n|---|---|---|---|"
    tables: list[tuple[str, str, Sequence[MetricRow]]] = [
        ("counter", "_total", (*COUNTERS, *ENGINE_COUNTERS)),
        ("histogram", "", HISTOGRAMS),
        ("gauge", "", GAUGES),
    ]
    for kind, end, rows in tables:
        for row in rows:
            labels = ", ".join(f"`{label}`" for label in row.labels)
            yield f"| `{PREFIX}{row.name}{end}` | {kind} | {labels} | {row.help} |"


def _model_metrics() -> Iterator[str]:
    yield "| Metric | Type | Meaning |\n|---|---|---|"
    yield from (f"| `{PREFIX}{name}` | gauge | {meaning} |" for name, meaning, _ in MODEL_GAUGES)


def _controller_metrics() -> Iterator[str]:
    rows = (
        *(("counter", f"{row.name}_total", row.labels, row.help) for row in controller.COUNTERS),
        *(("histogram", row.name, row.labels, row.help) for row in controller.HISTOGRAMS),
        *(("gauge", row.name, row.labels, row.help) for row in controller.GAUGES),
    )
    yield "| Metric | Type | Labels | Meaning |\n|---|---|---|---|"
    for kind, name, names, meaning in rows:
        labels = ", ".join(f"`{label}`" for label in names)
        yield f"| `{controller.PREFIX}{name}` | {kind} | {labels} | {meaning} |"


def _activator_metrics() -> Iterator[str]:
    yield "| Metric | Type | Meaning |\n|---|---|---|"
    yield from (f"| `{name}_total` | counter | {meaning} |" for name, meaning in activator.COUNTERS)
    yield from (f"| `{name}` | histogram | {meaning} |" for name, meaning in activator.HISTOGRAMS)
    yield from (f"| `{name}` | gauge | {meaning} |" for name, meaning in activator.GAUGES)


def _log() -> Iterator[str]:
    yield "| `event` | `level` | Fields | Meaning |\n|---|---|---|---|"
    yield from (f"| `{name}` | | | {meaning} |" for name, meaning in NOTES.items())
    for event, line in LINES.items():
        fields = ", ".join(f"`{name}`" for name in line.names)
        meaning = (event.__doc__ or "").partition("\n")[0]
        yield f"| `{line.text}` | `{line.level}` | {fields} | {meaning} |"


def _controller_log() -> Iterator[str]:
    yield "| `event` | Meaning |\n|---|---|"
    yield from (f"| `{name}` | {meaning} |" for name, meaning in EVENTS.items())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

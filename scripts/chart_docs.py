"""Generates the chart's documentation: its README from values.yaml, and the derived parts of its schema.

    python scripts/chart_docs.py          write both
    python scripts/chart_docs.py --check  exit with 1 when one is out of date

Every value has a comment that begins with `# --`; one without fails.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cache_agent.api.definitions import cached_model_definition
from cache_agent.config import json_schema

CHART = Path(__file__).parent.parent / "charts" / "weightyard"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):(?P<rest>.*)$")
_INTRODUCTION = """\
# weightyard

{description}

    helm install weightyard charts/weightyard --namespace weightyard --create-namespace

Installation, upgrades and removal are in [docs/install.md](../../docs/install.md), what each part may do and why in
[docs/security.md](../../docs/security.md). This file is made from `values.yaml` by `python scripts/chart_docs.py`.

## Values

| Value | Default | Meaning |
|---|---|---|
"""


@dataclass(frozen=True)
class Value:
    """One documented value: dotted name, default, meaning."""

    name: str
    default: Any
    meaning: str


def documented(text: str) -> Iterator[Value]:
    """The values of a values.yaml, in order. Raises ValueError for one without a comment."""
    document = yaml.safe_load(text)
    path: list[str] = []
    comment: list[str] = []
    skip = -1  # the depth of a documented value, whose own keys need no comment
    # Read line by line: a YAML parser drops the comments.
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        depth = (len(line) - len(line.lstrip())) // 2
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        match = _KEY.match(line)
        if match is None or (skip >= 0 and depth > skip):
            continue
        skip = -1
        path = [*path[:depth], match["key"]]
        if comment:
            if not comment[0].startswith("-- "):
                raise ValueError(f"values.yaml:{number}: the comment doesn't begin with `# --`")
            yield Value(".".join(path), _lookup(document, path), " ".join(comment)[3:])
            skip = depth
        elif match["rest"].strip():
            raise ValueError(f"values.yaml:{number}: {'.'.join(path)} has no comment")
        comment = []


def readme() -> str:
    """The chart's README."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    rows = [
        f"| `{each.name}` | `{_cell(json.dumps(each.default))}` | {_cell(each.meaning)} |\n"
        for each in documented((CHART / "values.yaml").read_text())
    ]
    return _INTRODUCTION.format(description=chart["description"]) + "".join(rows)


def schema() -> str:
    """The chart's schema, with the agent's settings from the agent itself."""
    document = json.loads((CHART / "values.schema.json").read_text())
    agent = json_schema()
    document["$defs"] = {
        **agent.pop("$defs"),
        "AgentConfig": agent,
        "CachedModelSpec": _cached_model_spec(),
    }
    return json.dumps(document, indent=2) + "\n"


def _cached_model_spec() -> dict[str, Any]:
    """The CRD's schema, but closed: helm then refuses a misspelled field, which an API server would drop."""
    version = cached_model_definition()["spec"]["versions"][0]
    spec: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return {**spec, "additionalProperties": False}


def main(check: bool) -> int:
    """Writes the files that differ, or reports them with `check`."""
    stale = []
    for path, text in (
        (CHART / "README.md", readme()),
        (CHART / "values.schema.json", schema()),
    ):
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not check:
                path.write_text(text)
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path}")
    return 1 if check and stale else 0


def _lookup(document: Any, path: list[str]) -> Any:
    for key in path:
        document = document[key]
    return document


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

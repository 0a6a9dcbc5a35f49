"""CEL expressions of CRDs and admission policies, evaluated as an API server does.

The grammar's parser takes seconds of CPU to make, and an expression is compiled slowly: both once, when needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel

Functions = Mapping[str, Callable[..., Any]]
# As celpy does with its first parser: within a test, Hypothesis would take the change for a fault of that test.
sys.setrecursionlimit(2500)


def evaluate(
    expression: str,
    seen: Mapping[str, Any],
    functions: Functions | None = None,
    **values: Any,
) -> Any:
    """What an expression yields: `seen` are JSON documents by name, `values` CEL's own values."""
    runner = _environment().program(_compiled(expression), functions=dict(functions or {}))
    return runner.evaluate({**{name: json_to_cel(each) for name, each in seen.items()}, **values})


@cache
def _environment() -> celpy.Environment:
    return celpy.Environment()


@cache
def _compiled(expression: str) -> Any:
    return _environment().compile(expression)

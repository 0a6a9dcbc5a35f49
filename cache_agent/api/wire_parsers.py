"""Parsers of the control API's bodies, each compiled when it is first used: a command uses one or two."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from cache_agent.api.wire import ErrorView, PullDone, PullProgress

T = TypeVar("T")
_adapter: Callable[[object], TypeAdapter[Any]] = cache(TypeAdapter)
PullEvent = Annotated[PullProgress | PullDone | ErrorView, Field(discriminator="event")]


def parse(kind: type[T], value: object) -> T:
    """A body of this kind, or a list of them, from parsed JSON. Raises pydantic's ValidationError."""
    parsed: T = _adapter(kind).validate_python(value)
    return parsed


def parse_json(kind: type[T], text: bytes) -> T:
    """A body of this kind from JSON. Raises pydantic's ValidationError."""
    parsed: T = _adapter(kind).validate_json(text)
    return parsed


def parse_pull_event(line: bytes) -> PullProgress | PullDone | ErrorView:
    """One line of a pull's answer. Raises pydantic's ValidationError."""
    parsed: PullProgress | PullDone | ErrorView = _adapter(PullEvent).validate_json(line)
    return parsed

"""The model interface that the planner reads; implemented by records and by foreign images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modelimage.digest import Digest
from modelimage.record import ModelFacts


class ServableFile(Protocol):
    """A file of a model. `path` is relative to the model's directory, `size` in bytes."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...


class Servable(Protocol):
    """One precision of a model."""

    @property
    def key(self) -> Digest:
        """The model key."""

    @property
    def variant(self) -> str: ...

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def files(self) -> Sequence[ServableFile]: ...

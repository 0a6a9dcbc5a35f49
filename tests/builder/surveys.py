"""Surveys of tiny checkpoints for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builder.sources.local import LocalSource
from builder.survey import Survey, survey
from tests.builder.checkpoints import single, write


def surveyed(
    directory: Path,
    files: Mapping[str, bytes],
    *,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    convert_pickle: bool = False,
) -> Survey:
    """The survey of a tiny checkpoint with more files."""
    source = LocalSource(write(single(directory / "m"), files))
    return survey(source, include=include, exclude=exclude, convert_pickle=convert_pickle)

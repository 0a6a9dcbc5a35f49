"""A small model image, and a terminal of a test's own to serve it from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import Terminal, workspace


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model image of a few megabytes, in a layout."""
    base = tmp_path_factory.mktemp("tiny")
    synthetic_checkpoint(base / "checkpoint", total_bytes=4_000_000)
    terminal = Terminal(base)
    image = f"oci:{base}/image:v1"
    terminal.ok("build", str(base / "checkpoint"), "--to", image)
    return image


@pytest.fixture
def terminal(tmp_root: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_root)
    yield terminal
    terminal.close()


@pytest.fixture
def file(terminal: Terminal, tiny_image: str) -> Path:
    return workspace(terminal.directory, "tiny", tiny_image)

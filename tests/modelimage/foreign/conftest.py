"""What makes foreign images in a layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modelimage.foreign.images import Maker


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "layout")

"""The checker of the Markdown files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/check_docs.py"


@pytest.fixture(scope="module")
def check_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_docs"] = module
    spec.loader.exec_module(module)
    return module


def test_links_that_lead_nowhere_are_found(check_docs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A good, long Heading!\n")
    text = (
        "[ok](there.md) [ok](there.md#a-good-long-heading) [ok](https://example.org/x) [ok](#here)\n"
        "## Here\n"
        "[bad](gone.md) and `[code](gone.md)`\n"
        "![bad](there.md#other)\n"
        "```\n[code](gone.md)\n```\n"
    )
    (tmp_path / "page.md").write_text(text)
    assert list(check_docs.broken_links(tmp_path / "page.md", text)) == [
        (3, "link to a missing file: gone.md"),
        (4, "link to a missing heading: there.md#other"),
    ]


def test_unknown_make_targets_are_found_in_code_only(check_docs: ModuleType) -> None:
    text = "To make sure, run `make demo`.\n```\n$ make dmeo\n```\nor `make tests`\n"
    assert list(check_docs.unknown_targets(text, {"demo", "test"})) == [
        (3, "no such make target: dmeo"),
        (5, "no such make target: tests"),
    ]

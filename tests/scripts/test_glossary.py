"""The glossary's words are the only ones: an abandoned word never comes back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| \*\*(?P<word>[^*]+)\*\* \| (?P<meaning>[^|]+) \|(?P<abandoned>[^|]*)\|$")
# Decisions and the changelog are dated; texts that models are calibrated with are other people's.
NOT_OURS = (
    ":!docs/decisions",
    ":!docs/glossary.md",
    ":!CHANGELOG.md",
    ":!quantize/data",
    ":!tests",
)


def rows() -> list[re.Match[str]]:
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    return [match for line in lines if (match := ROW.match(line))]


def abandoned() -> list[str]:
    return [word.strip() for row in rows() for word in row["abandoned"].split(",") if word.strip()]


def test_the_glossary_is_read() -> None:
    assert len(rows()) > 30
    assert {"shelf", "wish", "faces", "flights"} <= set(abandoned())
    words = [row["word"].lower() for row in rows()]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("word", abandoned())
def test_an_abandoned_word_is_in_no_code_setting_help_or_page(word: str) -> None:
    """As a word of its own, and as a part of an identifier: `shelf_name`, `_shelf`, `ShelfEntry`."""
    part = rf"(^|[^A-Za-z]|_){re.escape(word)}($|[^A-Za-z]|_)"
    camel = rf"(^|[^A-Z]){re.escape(word.title().replace(' ', ''))}($|[^a-z])"
    command = ["git", "grep", "-nIE", f"{part}|{camel}", "--", ".", *NOT_OURS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"say it with the glossary's word:\n{done.stdout}{done.stderr}"

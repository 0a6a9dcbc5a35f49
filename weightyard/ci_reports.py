"""What a CI system shows beside a job's log, where it says how: GitHub's annotations and job summaries.

Sources: GitHub's workflow commands (`::error title=…::…`, with its escapes) and GITHUB_STEP_SUMMARY, a file of Markdown
that each step appends to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

_ACTIONS: Final = "GITHUB_ACTIONS"
_SUMMARY: Final = "GITHUB_STEP_SUMMARY"
# A line end would end the command; in a property, so would these two.
_ESCAPES: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY_ESCAPES: Final = str.maketrans({":": "%3A", ",": "%2C"})


def annotation(environ: Mapping[str, str], message: str, *, title: str) -> str | None:
    """The line that shows an error on the page of a run; None where nothing reads it."""
    if environ.get(_ACTIONS) != "true":
        return None
    name = title.translate(_ESCAPES).translate(_PROPERTY_ESCAPES)
    return f"::error title={name}::{message.translate(_ESCAPES)}"


def add_summary(environ: Mapping[str, str], markdown: str) -> None:
    """Append to the job's summary, where there is one. One that can't be written to is no reason to fail."""
    path = environ.get(_SUMMARY)
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(markdown + "\n")
        except OSError:
            return

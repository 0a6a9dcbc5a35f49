"""From what a user writes to a ModelSource: the one spot that names the kinds of source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builder.sources.base import ModelSource
from builder.sources.local import LOCAL_URI, LocalSource
from modelimage.errors import InvalidInput

HUB_SCHEME = "hf://"


def open_source(
    text: str,
    environment: Mapping[str, str],
    *,
    uri: str | None = None,
    revision: str | None = None,
) -> ModelSource:
    """`hf://ORG/NAME[@REVISION]`, or a directory. Raises InvalidInput. Nothing is read or connected to yet.

    `uri` and `revision` are labels for a directory, which has none of its own.
    """
    if text.startswith(HUB_SCHEME):
        if uri or revision:
            raise InvalidInput(
                "--source-uri and --revision label a local directory",
                hint="Choose a Hub revision by hf://ORG/NAME@REVISION.",
            )
        # Only a Hub source needs huggingface-hub, an import of half a second.
        from builder.sources.hub import HubSource, parse_hub  # noqa: PLC0415

        return HubSource(parse_hub(text), endpoint=environment.get("HF_ENDPOINT"))
    if "://" in text:
        raise InvalidInput(
            f"unknown kind of source: {text[:200]!r}",
            hint="Give a directory, or hf://ORG/NAME[@REVISION].",
        )
    return LocalSource(Path(text), uri=uri or LOCAL_URI, revision=revision or "")

"""The table of sources: what it opens, and where it must be documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.sources.factory import SCHEMES, SourceScheme, open_bucket

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.prefix)
def test_every_kind_of_source_is_in_the_table_of_its_page(scheme: SourceScheme) -> None:
    assert f"| `{scheme.prefix}" in (DOCS / "build.md").read_text()


def test_only_buckets_are_opened_as_buckets(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    opened = {
        scheme.prefix
        for scheme in SCHEMES
        if open_bucket(f"{scheme.prefix}bucket/a", environment) is not None
    }
    assert opened == {"s3://", "gs://"}

"""A record's text is its author's: what makes a path or a URL of it takes names only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cache_agent.servers.hub.repo_files import RepoFiles
from cache_agent.servers.hub.view import make_view
from cache_agent.sources.hub import HubSource
from modelimage.errors import InvalidInput
from modelimage.hub import HubSnapshot
from modelimage.record import Record
from tests.cache_agent.images import make_record

RECORD = replace(
    make_record([{"config.json": b"{}"}])[0], source="hf://org/model@main", revision="a1b2c3"
)
HOSTILE = [
    "", ".", "..", "../..", "/etc", "a/../b", "a/b/c", "a\\b", "a\0b", "a\nb", "a b", "-x", "a%2f..",
    "a..b", "x" * 300, "é",
]  # fmt: skip
QUANTIZED = {"scheme": "int8"}
TEXTS: dict[str, Callable[[str], Record]] = {
    "repository": lambda text: replace(RECORD, source=f"hf://{text}"),
    "organisation": lambda text: replace(RECORD, source=f"hf://{text}/model"),
    "revision": lambda text: replace(RECORD, revision=text),
    "variant": lambda text: replace(RECORD, variant=text, quantization=QUANTIZED),
}


def _view(record: Record, base: Path) -> bool:
    model = base / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_bytes(b"{}")
    try:
        view = make_view(base / "hf", model, record)
    except InvalidInput:
        return False
    return view.path.resolve().is_relative_to(base / "hf")


USES: dict[str, Callable[[Record, Path], bool]] = {
    "view": _view,
    "listing": lambda record, base: RepoFiles.from_record(record) is not None,
    "source": lambda record, base: HubSource.of(record, "https://hub.test", None) is not None,
    "snapshot": lambda record, base: HubSnapshot.of(record) is not None,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_name_makes_no_path(tmp_path: Path, use: str, text: str) -> None:
    for hostile in HOSTILE:
        assert not USES[use](TEXTS[text](hostile), tmp_path), hostile
    assert sorted(each.name for each in tmp_path.rglob("*")) in (
        [],
        ["config.json", "model"],
    )


def test_only_a_repository_has_two_parts(tmp_path: Path) -> None:
    for text in ("revision", "variant"):
        assert not any(use(TEXTS[text]("a/b"), tmp_path) for use in USES.values())


@pytest.mark.parametrize("use", USES)
def test_names_are_taken(tmp_path: Path, use: str) -> None:
    assert USES[use](RECORD, tmp_path)
    assert USES[use](replace(RECORD, source="hf://gpt2"), tmp_path)


def test_a_variant_has_a_snapshot_of_its_own(tmp_path: Path) -> None:
    assert _view(replace(RECORD, variant="int8-w8a16", quantization=QUANTIZED), tmp_path)
    assert (tmp_path / "hf/models--org--model/snapshots/a1b2c3-int8-w8a16/config.json").exists()


def test_no_other_code_makes_paths_of_a_records_text() -> None:
    """Who reads a source or a revision prints it, compares it, or goes through `HubSnapshot`."""
    root = Path(__file__).parents[2]
    readers = {
        str(path.relative_to(root))
        for package in ("cache_agent", "weightyard", "workspace")
        for path in (root / package).rglob("*.py")
        if "record.revision" in path.read_text() or "hub_repository(" in path.read_text()
    }
    assert readers == {
        "cache_agent/servers/hub/repo_files.py",
        "cache_agent/servers/hub/trusted_images.py",
        "cache_agent/sources/hub.py",
        "weightyard/foreign.py",
    }

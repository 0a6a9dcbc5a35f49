"""Facts that several pages need are stated by one of them, as the code has them; the others link to it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from builder.layer_plan import MAX_LAYERS, MAX_WEIGHT_LAYERS
from builder.sources.factory import SCHEMES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/tasks/*.md"), ROOT / "README.md"])
VALUES = yaml.safe_load((ROOT / "charts/weightyard/values.yaml").read_text())
# What a page would say of each port: the option, or the variable that names it.
PORTS = {
    "hub": (
        VALUES["agent"]["hub"]["port"],
        r"--hub |HF_ENDPOINT=http://127\.0\.0\.1:|hub: \"|hub, ",
    ),
    "mirror": (
        VALUES["agent"]["mirror"]["port"],
        r"--mirror |mirror, |127\.0\.0\.1:(?=\d+/registry)",
    ),
    "observe": (VALUES["agent"]["observePort"], r"observe, |`/metrics` on port "),
}


def text_of(page: str) -> str:
    """A page of docs/ in one line."""
    return " ".join((ROOT / "docs" / page).read_text().split())


@pytest.mark.parametrize("server", PORTS)
def test_pages_name_the_ports_that_the_chart_has(server: str) -> None:
    port, before = PORTS[server]
    named = {
        (page.name, found)
        for page in PAGES
        for found in re.findall(rf"(?:{before})(\d+)", page.read_text())
    }
    assert named
    assert {found for _, found in named} == {str(port)}, named


def test_the_number_of_layers_is_stated_once() -> None:
    assert f"at most {MAX_LAYERS} layers, {MAX_WEIGHT_LAYERS} of them of weights" in text_of(
        "formats.md"
    )
    counts = rf"\b({MAX_LAYERS}|{MAX_WEIGHT_LAYERS}) (?:layers|weight files)"
    assert [
        page.name for page in PAGES if re.search(counts, " ".join(page.read_text().split()))
    ] == ["formats.md"]


def test_kinds_of_sources_are_listed_on_one_page() -> None:
    """Other pages may name one that they are about; a second list would be forgotten when one is added."""
    for page in PAGES:
        rows = [each.prefix for each in SCHEMES if f"| `{each.prefix}" in page.read_text()]
        assert page.name == "build.md" or len(rows) <= 1, (page.name, rows)


def test_what_a_lost_ledger_costs_is_stated_once() -> None:
    """The invariant of the store; who mentions it elsewhere links to it and contradicts nothing."""
    for name in ("prewarming.md", "operations.md"):
        text = text_of(name)
        (about,) = re.findall(r"- \*\*(?:A lost ledger|The ledger [^*]*)\*\*.*?(?= - \*\*|$)", text)
        assert "store.md#invariants" in about
        assert not re.search(r"[Pp]ins\b[^.]* are lost", about)

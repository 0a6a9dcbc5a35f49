"""YAML that means harm is refused as any other mistake is, within the time that its length allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_agent.config.settings_file import parse_config
from cache_agent.prewarm.directory_source import DirectorySource
from modelimage.errors import InvalidInput
from modelimage.yaml_text import parse_yaml
from tests.cache_agent.prewarm.documents import cached_model
from weightyard.doctor.parse import eviction_hard
from workspace.document import parse_workspaces

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip
# Each mapping has the keys of all before it.
STAIRS = "a0: &a0 {k: v}\n" + "".join(
    f"a{i}: &a{i} {{<<: *a{i - 1}, k{i}: v}}\n" for i in range(1, 500)
)
HOSTILE = {
    "deep": "[" * 20_000,
    "deep blocks": "- " * 20_000,
    "many digits": "a: " + "1" * 5000,
    "no date": "a: 2026-99-99T99:99:99Z",
    "of itself": "&a {x: *a}",
    "of aliases": LAUGHS,
    "an object": "!!python/object/apply:os.system [id]",
    "not text": "a: \x00",
    "cut off": "a: [",
    "merge keys of all before": STAIRS,
    "a merge of itself": "&a {<<: *a}",
    "base 60": "a: 1" + ":59" * 5_000,
    "a float of base 60": "a: 1" + ":59" * 300 + ".5",
    "an empty integer": "a: !!int ''",
    "an empty float": "a: !!float ''",
    "neither true nor false": "a: !!bool perhaps",
    "no time": "a: !!timestamp never",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_wherever_yaml_is_read(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="this text"):
        parse_yaml(text, what="this text")
    with pytest.raises(InvalidInput):
        parse_config(text, {}, {})
    with pytest.raises(InvalidInput):
        parse_config("", {"WEIGHTYARD_PEERS": text}, {})
    assert eviction_hard(text) == {}
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "good.json").write_text(str(cached_model()).replace("'", '"'))
    with pytest.raises(InvalidInput):
        parse_workspaces(text, name="this text")
    state = DirectorySource(tmp_path).read()
    assert list(state.models) == ["chat"]
    assert [each.where for each in state.refused] == ["bad.yaml"]


def test_documents_are_parsed_and_empty_ones_left_out() -> None:
    text = "---\na: &x [1, 2]\nb: *x\n---\n---\nnull\n---\n- 3\n"
    assert parse_yaml(text, what="it") == [{"a": [1, 2], "b": [1, 2]}, [3]]
    assert parse_yaml("", what="it") == []

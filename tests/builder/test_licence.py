"""What a checkpoint says its licence is, as SPDX."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.licence import licence


def card(front_matter: str) -> dict[str, str]:
    return {"README.md": f"---\n{front_matter}\n---\n# A model\n"}


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("license: apache-2.0", "Apache-2.0"),
        ("license: MIT", "MIT"),
        ("license: gpl-3.0", "GPL-3.0-only"),
        ("license: llama3.1", "LicenseRef-llama3.1"),
        ("license: other\nlicense_name: Some Lab Licence", "LicenseRef-some-lab-licence"),
        ("license:\n- mit\n- apache-2.0", "MIT AND Apache-2.0"),
        ("license: other", ""),
        ("language: en", ""),
        ("license: [", ""),
        ("- a list", ""),
        ("license: {a: b}", ""),
    ],
)
def test_the_front_matter_of_a_readme(front_matter: str, expected: str) -> None:
    assert licence(card(front_matter)) == expected


def test_a_licence_file_speaks_where_the_readme_is_silent() -> None:
    text = "                                 Apache License\n                           Version 2.0, January 2004\n"
    assert licence({"LICENSE": text}) == "Apache-2.0"
    assert licence({"README.md": "# no front matter", "LICENSE.txt": "MIT License\n"}) == "MIT"
    assert licence({"LICENSE": "All rights reserved."}) == ""
    assert licence({**card("license: mit"), "LICENSE": text}) == "MIT"


def test_no_documents_state_no_licence() -> None:
    assert licence({}) == ""


def test_a_document_that_nests_without_end_is_read_in_no_time() -> None:
    bombs = "\n".join(f"k{n + 1}: &k{n + 1} {{<<: [*k{n}, *k{n}]}}" for n in range(1, 60))
    assert licence(card(f"license: mit\nk1: &k1 {{a: b}}\n{bombs}")) == "MIT"


@given(st.text(max_size=200))
def test_any_front_matter_gives_a_single_line(text: str) -> None:
    assert "\n" not in licence(card(text))

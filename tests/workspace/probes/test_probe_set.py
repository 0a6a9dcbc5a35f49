"""The probes file: what is in it, and that a hostile one costs nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from modelimage.errors import InvalidInput
from workspace.probes.probe_set import MOST_BYTES, parse_probes

USER = {"role": "user", "content": "x"}
PROBE = {"name": "p", "prompt": "2 + 2 =", "contains": "4"}


LAUGHS = [
    f"{name}: &{name} [{','.join([f'*{before}'] * 8)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
]


def text_of(*probes: Any) -> str:
    return json.dumps({"probes": probes})


def test_each_kind_of_expectation_is_read_from_yaml() -> None:
    found = parse_probes(
        """
        probes:
          - {name: capital, prompt: The capital of France is, maxTokens: 8, contains: Paris}
          - {name: sum, messages: [{role: user, content: What is 2 + 2}], regex: '\\b4\\b'}
          - {name: exact, prompt: "1, 2,", exact: "3"}
          - name: object
            prompt: Write JSON.
            jsonSchema: {type: object, required: [a]}
          - {name: same, prompt: Once upon a time, agreement: {maxLogprobGap: 0.1, minShare: 0.5}}
        """,
        what="the file",
    )
    assert [each.expectation.value for each in found.probes] == [
        "contains",
        "regex",
        "exact",
        "jsonSchema",
        "agreement",
    ]
    assert (found.probes[0].max_tokens, found.probes[1].max_tokens) == (8, 64)


@pytest.mark.parametrize(
    "probe",
    [
        {**PROBE, "exact": "4"}, {"name": "p", "prompt": "x"}, {**PROBE, "messages": [USER]},
        {"name": "p", "contains": "x"}, {**PROBE, "name": "a b"}, {**PROBE, "name": "x" * 64},
        {**PROBE, "maxTokens": 513},
        {**PROBE, "maxTokens": 0}, {**PROBE, "prompt": "x" * 16_385}, {**PROBE, "surprise": 1}, "text", None,
        {"name": "p", "prompt": "x", "regex": "(?=a)"}, {"name": "p", "prompt": "x", "jsonSchema": {"$ref": "#"}},
        {"name": "p", "prompt": "x", "agreement": {"maxLogprobGap": -1}},
        {"name": "p", "messages": [], "contains": "x"},
        {"name": "p", "messages": [{**USER, "role": "tool"}], "contains": "x"},
        {"name": "p", "messages": [USER] * 33, "contains": "x"},
    ],
)  # fmt: skip
def test_a_probe_that_cant_be_asked_is_refused(probe: Any) -> None:
    with pytest.raises(InvalidInput, match="the file"):
        parse_probes(text_of(probe), what="the file")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "probes: 3", '{"probes": []}', text_of(PROBE, PROBE), "{" * 30_000,
        "[" * 30_000, '{"a":' * 10_000,
        "x" * (MOST_BYTES + 1), "é" * (MOST_BYTES // 2 + 1), text_of(*[{**PROBE, "name": f"p{n}"} for n in range(101)]),
        '{"probes":[' + "0," * 30_000 + "0]}", "a: &a [*a]", "probes: &a\n- *a", "--- {}\n--- {}",
        "a: &a [x,x,x,x,x,x,x,x]\n" + "\n".join(LAUGHS),
        "probes: !!python/object/apply:os.system [id]", '{"probes": ' + "9" * 6000 + "}",
    ],
)  # fmt: skip
def test_hostile_files_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="the file"):
        parse_probes(text, what="the file")


def test_json_and_yaml_say_the_same() -> None:
    document = {"probes": [PROBE]}
    assert parse_probes(json.dumps(document), what="a") == parse_probes(
        yaml.safe_dump(document), what="b"
    )

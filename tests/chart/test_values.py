"""Values that make no sense are refused before anything is installed, with the value's name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from scripts import chart_docs
from tests.chart.charting import CHART, Refused, render

Json = dict[str, Any]

WRONG: list[tuple[str, Json]] = [
    ("/agent", {"agent": {"enable": True}}),
    ("/agent/image/tag", {"agent": {"image": {"tag": "latest"}}}),
    ("/agent/image/digest", {"agent": {"image": {"digest": "sha256:short"}}}),
    ("/agent/memory/tier", {"agent": {"memory": {"tier": "64GB"}}}),
    ("/agent/memory/base", {"agent": {"memory": {"base": 1}}}),
    ("/agent/hostPath", {"agent": {"hostPath": "relative/path"}}),
    ("/agent/hostPath", {"agent": {"hostPath": "/"}}),
    ("/agent/config", {"agent": {"config": {"budgets": "80%"}}}),
    ("/agent/config/fetch/streams", {"agent": {"config": {"fetch": {"streams": 0}}}}),
    ("/agent/config/tiers/order/0", {"agent": {"config": {"tiers": {"order": ["cloud"]}}}}),
    ("/agent/mirror/containerd", {"agent": {"mirror": {"containerd": "yes"}}}),
    ("/agent/peers/zones", {"agent": {"peers": {"zones": "all"}}}),
    ("/agent/peers/upload", {"agent": {"peers": {"upload": "80%"}}}),
    ("/agent/admissionPolicy", {"agent": {"admissionPolicy": True}}),
    ("/cachedModels/a", {"cachedModels": {"a": {"variant": "int4"}}}),
    ("additional properties 'pinned'", {"cachedModels": {"a": {"image": "r.example/a:b", "pinned": True}}}),
    ("/agent/mirror/port", {"agent": {"mirror": {"port": 70000}}}),
    ("/agent/updateStrategy/type", {"agent": {"updateStrategy": {"type": "Recreate"}}}),
    ("/agent/registries/0", {"agent": {"registries": ["https://registry.example"]}}),
    ("/controller/logLevel", {"controller": {"logLevel": "loud"}}),
    ("/controller/logFormat", {"controller": {"logFormat": "xml"}}),
    ("/controller/plainHttp/0", {"controller": {"plainHttp": ["http://registry.example"]}}),
    ("/proxy/https", {"proxy": {"https": "proxy one"}}),
    ("not both", {"controller": {"caConfigMap": "a", "caSecret": "b"}}),
    ("/controller/replicas", {"controller": {"replicas": 0}}),
    ("/controller/pullSecrets/0", {"controller": {"pullSecrets": [{"names": ["pull"]}]}}),
    ("/networkPolicy/blockedCidrs/0", {"networkPolicy": {"blockedCidrs": ["metadata"]}}),
    ("/monitoring/serviceMonitor/interval", {"monitoring": {"serviceMonitor": {"interval": "fast"}}}),
    ("/tests/image", {"tests": {"image": "pause"}}),
    ("additional properties 'agents'", {"agents": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("where", "values"), WRONG)
def test_wrong_values_are_refused_by_name(where: str, values: Json) -> None:
    with pytest.raises(Refused, match=re.escape(where)):
        render(values)


def test_every_value_is_in_the_schema_and_every_property_in_the_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(schema: Json, value: Json, path: str) -> None:
        closed = schema.get("additionalProperties") is False
        if not closed:
            return
        expected = set(schema["properties"]) - {"global"}
        assert expected == set(value), path
        for name in expected:
            compare(schema["properties"][name], value[name], f"{path}.{name}")

    compare(schema, values, "")


def test_readme_and_schema_are_what_the_script_writes() -> None:
    """`python scripts/chart_docs.py` writes them anew."""
    assert (CHART / "README.md").read_text() == chart_docs.readme()
    assert (CHART / "values.schema.json").read_text() == chart_docs.schema()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "a has no comment"),
        ("# said wrongly\na: 1\n", "doesn't begin with"),
        ("# -- A.\na: {}\nb: 2\n", "b has no comment"),
    ],
)
def test_a_value_without_a_comment_is_noticed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(chart_docs.documented(text))


def test_documented_values_have_their_defaults() -> None:
    text = (
        "a:\n  # -- One.\n  # Two.\n  b: {c: 1}\n  # -- Three.\n  d:\n    e: 2\n# -- Four.\nf: []\n"
    )
    found = [(each.name, each.default, each.meaning) for each in chart_docs.documented(text)]
    assert found == [
        ("a.b", {"c": 1}, "One. Two."),
        ("a.d", {"e": 2}, "Three."),
        ("f", [], "Four."),
    ]

"""The agent's settings: what overrides what, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cache_agent.config import AgentConfig, json_schema
from cache_agent.config.settings_file import parse_config
from modelimage.errors import InvalidInput


def test_flags_beat_variables_beat_the_file() -> None:
    text = "budget: 10GB\nmin_free: 1GB\nfetch: {streams: 2, bandwidth: 5MB}\n"
    environ = {
        "WEIGHTYARD_MIN_FREE": "2GB",
        "WEIGHTYARD_FETCH__STREAMS": "3",
        "WEIGHTYARD_DEBUG": "1",
    }
    config = parse_config(text, environ, {"fetch.streams": 5, "budget": None})
    assert (config.budget, config.min_free) == ("10GB", "2GB")
    assert (config.fetch.streams, config.fetch.bandwidth) == (5, "5MB")
    assert parse_config("", {}, {}) == AgentConfig()
    assert (
        parse_config("fetch: {bandwidth: 0}\nservers: {mirror: 5080}\n", {}, {}).servers.mirror
        == "5080"
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [("budget: lots", "budget"), ("fetch: {streams: 0}", "fetch.streams"), ("nonsense: 1", "nonsense"),
     ("tiers: {shared: [{}]}", "tiers.shared.0"), ("tiers: {order: [hub, hub]}", "tiers"),
     ("[1]", "mapping"), ("a: [", "YAML")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(text: str, names: str) -> None:
    with pytest.raises(InvalidInput, match=names):
        parse_config(text, {}, {})


@pytest.mark.parametrize(
    ("text", "environ", "given", "message"),
    [
        ("budget: 1GB\nfetch:\n  stream: 3\n", {}, {},
         r"^agent\.yaml:3: unknown field fetch\.stream; did you mean 'streams'"),
        ("budget: 1GB\nbudget: 2GB\n", {}, {}, r"^agent\.yaml:2: the key 'budget' occurs twice$"),
        ("a: [\n", {}, {}, r"^agent\.yaml:2: not valid YAML"),
        ("", {"WEIGHTYARD_FETCH__STREAMS": "0"}, {}, r"^WEIGHTYARD_FETCH__STREAMS: expected at "),
        ("fetch: {streams: 1}", {}, {"fetch.streams": 0}, r"^--fetch-streams: expected at "),
        ("min_fre: 5%\n", {}, {}, "did you mean 'min_free'"),
        ("fetch.streams: 3\n", {}, {},
         r"^agent\.yaml:1: unknown field fetch\.streams; did you mean `fetch: \{streams: …\}`\?$"),
        ("stall_second: 3\n", {}, {}, "known here: budget"),
        ("streams: 3\n", {}, {}, r"did you mean `fetch: \{streams: …\}`"),
        ("hub.endpoint: x\n", {}, {}, r"did you mean `tiers: \{hub: \{endpoint: …\}\}`"),
        ("peers: {members: ['a:1']}\n", {}, {},
         r"peers\.members\[0\]: expected a mapping with the fields address, zone"),
        ("fetch: 3\n", {}, {}, r"^agent\.yaml:1: fetch: expected a mapping with the fields bandwidth, "),
    ],
)  # fmt: skip
def test_errors_say_where_and_what_was_meant(
    text: str, environ: dict[str, str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parse_config(text, environ, given, name="agent.yaml")
    assert caught.value.hint


def test_every_setting_is_in_the_schema() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(AgentConfig.model_fields)
    assert schema["additionalProperties"] is False

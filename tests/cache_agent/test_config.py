"""The agent's settings: what overrides what, and what is refused."""

from __future__ import annotations

import pytest

from cache_agent.config import AgentConfig, json_schema, parse_config
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


def test_every_setting_is_in_the_schema() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(AgentConfig.model_fields)
    assert schema["additionalProperties"] is False

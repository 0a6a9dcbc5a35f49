"""Every setting of the agent is an option and a variable: none can be set in the file only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cache_agent.config import AgentConfig
from cache_agent.config.settings_file import parse_config
from modelimage.errors import InvalidInput
from weightyard.commands.agent import agent
from weightyard.settings import Setting, setting_options, settings

# A value that is no default, as it is written on a command line, and as the settings hold it.
EXAMPLES: Mapping[str, tuple[str, object]] = {
    "extra_roots": ("/mnt/b", "/mnt/b"),
    "port": ("0", 0),
    "budget": ("500000000", "500000000"),
    "fetch.streams": ("7", 7),
    "tiers.order": ("hub", "hub"),
    "tiers.shared": ("{directory: /mnt/shared}", "/mnt/shared"),
    "tiers.mirrors": ("{docker.io: [a.example]}", "a.example"),
    "servers.mirror": ("0:5080", "0:5080"),
    "servers.csi.mounter": ("/run/mounter.sock", "/run/mounter.sock"),
}


@click.command()
@setting_options
@click.pass_context
def command(ctx: click.Context, given: dict[str, Any]) -> None:
    """A command that takes settings."""
    ctx.obj.update(given)


def given(*arguments: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    result = CliRunner().invoke(command, arguments, obj=values, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return {name: value for name, value in values.items() if value is not None}


def test_the_agent_has_an_option_for_every_setting() -> None:
    flags = {flag for each in agent.params for flag in each.opts}
    for setting in settings():
        assert setting.flags[0] in flags


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_option_sets_its_setting(name: str) -> None:
    text, expected = EXAMPLES[name]
    setting = next(each for each in settings() if each.name == name)
    config = parse_config("", {}, given(setting.flags[-1], text))
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    assert value == expected or str(expected) in str(value)
    assert config != AgentConfig()


def test_a_switch_turns_off_and_what_is_not_given_is_unset() -> None:
    assert given("--no-tiers-populate-shared") == {"tiers.populate_shared": False}
    assert given() == {}


def test_a_list_is_given_by_repeating() -> None:
    assert given("--registry", "a", "--registry", "b") == {"servers.registries": ["a", "b"]}


def test_every_setting_is_explained() -> None:
    assert [each.name for each in settings() if not each.field.description] == []


def test_what_is_no_yaml_is_named() -> None:
    shared = next(each for each in settings() if each.name == "tiers.shared")
    assert isinstance(shared, Setting)
    with pytest.raises(InvalidInput, match=r"tiers\.shared"):
        shared.value(("{a",))


@pytest.mark.parametrize("setting", list(settings()), ids=lambda each: each.name)
def test_an_option_or_variable_is_named_once(setting: Setting) -> None:
    """By the way that it was given, without the name that it has in the file."""
    variable = f"WEIGHTYARD_{setting.name.upper().replace('.', '__')}"
    wrong = {"no": {"such": [1]}}
    given: list[tuple[dict[str, str], dict[str, Any], str]] = [
        ({variable: str(wrong)}, {}, variable),
        ({}, {setting.name: wrong}, "--" + setting.name.replace(".", "-").replace("_", "-")),
    ]
    for environ, overrides, place in given:
        with pytest.raises(InvalidInput) as refused:
            parse_config("", environ, overrides)
        # Other lines say what its section lacks.
        lines = refused.value.message.splitlines()
        about = [line for line in lines if line.startswith(f"{place}: ")]
        assert about, lines
        assert not any(line.startswith(f"{place}: {setting.name}") for line in about)


@pytest.mark.parametrize("value", [[[]], {"a": {}}, 5.5, "", True])
@pytest.mark.parametrize("setting", list(settings()), ids=lambda each: str(each.name))
def test_a_value_of_another_kind_is_refused_without_the_words_of_python(
    setting: Setting, value: object
) -> None:
    try:
        config = parse_config("", {}, {setting.name: value})
    except InvalidInput as error:
        told = error.message
        assert not re.search(
            r"<class|tuple|dict|pathlib|instance of|valid (string|bool|list)", told
        )
        return
    # An empty path is the working directory, which nobody means.
    found: Any = config
    for part in setting.name.split("."):
        found = getattr(found, part)
    assert found != Path()

"""Generates the agent's command-line options from its settings, so that none is missing.

`fetch.streams` is `--fetch-streams`; some also have a short name. Lists are given by repeating the option; structured
values are written in YAML: `--tiers-shared '{directory: /mnt/models}'`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, ParamSpec, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cache_agent.config import AgentConfig
from modelimage.errors import InvalidInput
from modelimage.yaml_text import parse_yaml
from weightyard.advanced import AdvancedOption

P = ParamSpec("P")
R = TypeVar("R")

# Listed by `weightyard agent --help`. All other settings are advanced options.
COMMON: Final = frozenset(
    {"budget", "min_free", "tiers.shared", "servers.mirror", "servers.hub",
     "servers.registries"}
)  # fmt: skip
_SHORT: Final = {
    "fetch.streams": "--streams",
    "fetch.bandwidth": "--bandwidth",
    "servers.mirror": "--mirror",
    "servers.hub": "--hub",
    "servers.observe": "--observe",
    "servers.registries": "--registry",
    "extra_roots": "--extra-root",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its dotted name, its type without None, and its pydantic field."""

    name: str
    kind: Any
    field: FieldInfo

    @property
    def parameter(self) -> str:
        """Its name among a command's arguments. The prefix avoids clashes with the command's own."""
        return "setting_" + self.name.replace(".", "_")

    @property
    def flags(self) -> tuple[str, ...]:
        long = "--" + self.name.replace(".", "-").replace("_", "-")
        return tuple(dict.fromkeys((long, _SHORT.get(self.name, long))))

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    def option(self) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """The option of this setting; None when not given."""
        text = self.field.description or "See --print-schema."
        default = self.field.get_default(call_default_factory=True)
        shown = (
            ""
            if default in (None, PydanticUndefined, (), {})
            else f"  [default: {_shown(default)}]"
        )
        kind = click.Option if self.name in COMMON else AdvancedOption
        if self.kind is bool:
            both = f"{self.flags[0]}/--no-{self.flags[0][2:]}"
            # None, not False: where the option isn't given, the file's value counts.
            return click.option(both, self.parameter, cls=kind, default=None, help=text + shown)
        return click.option(
            *self.flags,
            self.parameter,
            cls=kind,
            multiple=self.is_list,
            metavar=self.name.rsplit(".", maxsplit=1)[-1].upper(),
            help=text + shown,
        )

    def value(self, given: Any) -> Any:
        """The given value in the form of the settings file; None when not given. Raises InvalidInput."""
        # Click gives () for a list option that is absent: it must not override the file with an empty list.
        if given is None or given == ():
            return None
        if self.is_list:
            structured = _has_structure(get_args(self.kind)[0])
            return [_parse(each, self.name) if structured else each for each in given]
        return _parse(given, self.name) if _has_structure(self.kind) else given


def settings(model: type[BaseModel] = AgentConfig, above: str = "") -> Iterator[Setting]:
    """All settings in the file's order, sections included."""
    for name, field in model.model_fields.items():
        kind = _without_none(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{above}{name}.")
        else:
            yield Setting(above + name, kind, field)


def setting_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds an option for every setting but the root, collected in the argument `given`: dotted names to values."""
    every = [setting for setting in settings() if setting.name != "root"]

    def gathered(*args: Any, **kwargs: Any) -> R:
        given = {each.name: each.value(kwargs.pop(each.parameter)) for each in every}
        return command(*args, given=given, **kwargs)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__dict__.update(command.__dict__)  # click stores a command's options here
    # Reversed, as the option that is added last is listed first: help has them in the file's order.
    return reduce(lambda inner, each: each.option()(inner), reversed(every), gathered)


def _has_structure(kind: Any) -> bool:
    """Whether values are written in YAML. Numbers and text are parsed by the settings themselves."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return True
    return get_origin(kind) is Mapping


def _parse(text: str, name: str) -> Any:
    documents = parse_yaml(text, what=name)
    if len(documents) > 1:
        raise InvalidInput(f"{name} has more than one YAML document")
    return documents[0] if documents else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [each for each in get_args(annotation) if each is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else f"{default}"

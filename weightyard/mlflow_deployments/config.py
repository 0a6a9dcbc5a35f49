"""The keys of a deployment's config (`-C KEY=VALUE`): one table, which is parsed, told by help, and documented. Pure.

Values come as text from MLflow's command line, and as Python's own from programs.
"""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from modelimage.errors import InvalidInput

Values = Mapping[str, Any]
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_LISTED: Final = 80  # characters of a value that a message repeats


class Part(Enum):
    """What a key is about. BUILD: of the image; kept, so that an update builds the next version alike. SPEC: a field of
    the Workspace. CALL: of one call."""

    BUILD = "build"
    SPEC = "spec"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `field` is its place in a Workspace's spec; `default` is what holds without it, for people."""

    name: str
    read: Callable[[Any], Any]
    part: Part
    default: str
    meaning: str
    field: tuple[str, ...] = ()


def _text(value: Any) -> str:
    text = str(value).strip()
    if not text:
        raise ValueError("is empty")
    return text


def _words(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(_text(each) for each in parts)


def _arguments(value: Any) -> tuple[str, ...]:
    return tuple(shlex.split(value) if isinstance(value, str) else map(str, value))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("is no whole number")
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError("is no whole number") from error


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError("is no number") from error
    if not (math.isfinite(number) and number > 0):
        raise ValueError("is no positive number")
    return number


def _flag(value: Any) -> bool:
    text = str(value).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError("is neither true nor false")
    return text in _TRUE


KEYS: Final[tuple[Key, ...]] = (
    Key("registry", _text, Part.BUILD, "required in a cluster; here a directory of the cache",
        "Where images are pushed: version 3 of `chat` becomes `REGISTRY/chat:v3`."),
    Key("variants", _words, Part.BUILD, "none",
        "Quantized variants to build beside the published weights, such as `int8,int4`."),
    Key("evaluate", _flag, Part.BUILD, "false", "Measure what each variant loses in quality."),
    Key("max_perplexity_ratio", _number, Part.BUILD, "none",
        "The build fails where a variant's perplexity is a greater multiple; implies `evaluate`."),
    Key("max_kl", _number, Part.BUILD, "none",
        "The build fails where a variant's KL divergence is greater; implies `evaluate`."),
    Key("variant", _text, Part.SPEC, "auto", "The variant to serve; `auto` is the most accurate that fits.",
        ("model", "variant")),
    Key("pull_secret", _text, Part.SPEC, "none", "The Secret with the registry's credentials, in the namespace.",
        ("model", "pullSecret")),
    Key("replicas", _whole, Part.SPEC, "1", "How many servers run, in a cluster.", ("replicas",)),
    Key("gpus", _whole, Part.SPEC, "as many as needed", "GPUs of one server; 0 serves on CPUs.",
        ("resources", "gpus")),
    Key("gpu", _text, Part.SPEC, "any", "The kind of GPU, such as `L4` or `H100`.", ("resources", "gpu")),
    Key("context_length", _whole, Part.SPEC, "as many as fit", "Tokens that must fit.",
        ("runtime", "contextLength")),
    Key("args", _arguments, Part.SPEC, "none", "More arguments of vLLM, written as in a shell.",
        ("runtime", "args")),
    Key("strategy", _text, Part.SPEC, "rolling",
        "How a new version replaces the old one, in a cluster: `rolling`, `canary` or `blueGreen`.",
        ("rollout", "strategy")),
    Key("workspace", _text, Part.CALL, "none",
        "A file with a Workspace: its spec holds where no key says otherwise, but for `model.image`."),
    # Not kept: who may edit the Workspace must not choose how the next caller's credentials travel.
    Key("plain_http", _words, Part.CALL, "none", "Registries without TLS, such as `localhost:5000`."),
    Key("ca_file", _text, Part.CALL, "none", "A file with the certificates of your own authority."),
    Key("port", _whole, Part.CALL, "a free one", "The server's port on this machine; only with `weightyard:/local`."),
    Key("timeout", _number, Part.CALL, "none: progress decides",
        "Seconds after which a call stops waiting until the deployment serves."),
)  # fmt: skip
_BY_NAME: Final = {key.name: key for key in KEYS}


def parse_config(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values by key; None for a key that is to be unset (an empty value). Raises InvalidInput."""
    found: dict[str, Any] = {}
    for name, value in (given or {}).items():
        key = _BY_NAME.get(name)
        if key is None:
            raise _unknown(name)
        # An empty value takes back what an earlier call set.
        found[name] = None if value is None or value == "" else _read(key, value)
    return found


def part_of(values: Values, part: Part) -> dict[str, Any]:
    """The values of one part."""
    known = {key.name for key in KEYS if key.part is part}
    return {name: value for name, value in values.items() if name in known}


def merged(before: Values, given: Values) -> dict[str, Any]:
    """Values on top of earlier ones, without those that were unset."""
    return {name: value for name, value in {**before, **given}.items() if value is not None}


def with_fields(spec: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """A Workspace's spec with the fields of the SPEC keys among `values`."""
    document = dict(spec)
    for name, value in part_of(values, Part.SPEC).items():
        document = _placed(document, _BY_NAME[name].field, value)
    return document


def config_rows() -> Sequence[tuple[str, str, str]]:
    """Key, default and meaning of each, for help and documentation."""
    return [(key.name, key.default, key.meaning) for key in KEYS]


def _placed(document: Mapping[str, Any], field: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = field
    if rest:
        inner = _placed(document.get(first) or {}, tuple(rest), value)
        return {**document, first: inner} if inner else _without(document, first)
    if value is None:
        return _without(document, first)
    return {**document, first: list(value) if isinstance(value, tuple) else value}


def _without(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in document.items() if each != name}


def _read(key: Key, value: Any) -> Any:
    try:
        return key.read(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"config {key.name}={str(value)[:_LISTED]!r}: {error}", hint=f"{key.meaning}"
        ) from error


def _unknown(name: str) -> InvalidInput:
    close = difflib.get_close_matches(str(name), _BY_NAME, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(_BY_NAME)}."
    return InvalidInput(f"there is no config key {str(name)[:_LISTED]!r}", hint=hint)

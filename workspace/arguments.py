"""Parses and merges an inference server's command-line arguments; the user's override derived ones.

vLLM, SGLang, TGI and llama-server accept `--flag value`, `--flag=value` and bare `--flag`, and `_` for `-` in flag
names. Pure: tuples of text in, tuples of text out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelimage.errors import InvalidInput

Argument = tuple[str, ...]  # a flag, or a flag and its value

_MOST: Final = 10**9
# Flags with several spellings, by canonical name. Without this table a user's `-tp 2` and a derived
# `--tensor-parallel-size 1` would both reach the server.
_ALIASES: Final[Mapping[str, str]] = {
    "-tp": "--tensor-parallel-size", "--tp": "--tensor-parallel-size", "--tp-size": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size", "--pp-size": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size", "--dp-size": "--data-parallel-size", "-dpl": "--data-parallel-size-local",
    "-ep": "--enable-expert-parallel",
    "-c": "--ctx-size", "-m": "--model", "-a": "--alias", "--host-name": "--host",
}  # fmt: skip


def flag_name(text: str) -> str:
    """The canonical name of a flag: no value, `-` for `_`, aliases resolved, `--no-x` as `--x`."""
    name = text.partition("=")[0].replace("_", "-")
    name = _ALIASES.get(name, name)
    # `--no-x` counts as the same flag, so that a user's `--no-x` removes a derived `--x`.
    return f"--{name[5:]}" if name.startswith("--no-") else name


def is_flag(text: str) -> bool:
    """Whether a word starts an argument. `-1` and `-0.5` are values."""
    return text.startswith("-") and not text[1:2].isdigit() and text != "-"


def given(user: Iterable[str]) -> frozenset[str]:
    """Canonical names of all flags in the user's arguments."""
    return frozenset(flag_name(word) for word in user if is_flag(word))


def value_of(user: Iterable[str], flag: str) -> str | None:
    """The user's last value of a flag; None when the flag is absent or has no value."""
    found, words = None, list(user)
    # No early return: the servers' argument parsers keep the last of repeated flags.
    for i, word in enumerate(words):
        if is_flag(word) and flag_name(word) == flag:
            _, equals, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) and not is_flag(words[i + 1]) else None
            found = value if equals else following
    return found


def number_of(user: Iterable[str], flag: str) -> float | None:
    """The user's value of a flag as a positive number, with vLLM's suffixes (`8k`, `8K`). Raises InvalidInput."""
    text = value_of(user, flag)
    if text is None:
        return None
    scale = {"k": 1000, "m": 10**6, "g": 10**9, "K": 1024, "M": 1 << 20, "G": 1 << 30}
    factor = scale.get(text[-1:], 1)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError as error:
        raise InvalidInput(f"{flag} needs a number, not {text!r}") from error
    # `float` accepts nan, inf and negative numbers, which later arithmetic doesn't.
    if not 0 < number < math.inf:
        raise InvalidInput(f"{flag} needs a number above 0, not {text!r}")
    return number


def count_of(user: Iterable[str], flag: str) -> int | None:
    """The user's value of a flag that counts something: a whole number from 1 to a billion. Raises InvalidInput."""
    number = number_of(user, flag)
    if number is None:
        return None
    if number != int(number) or number > _MOST:
        raise InvalidInput(
            f"{flag} needs a whole number up to {_MOST}, not {value_of(user, flag)!r}"
        )
    return int(number)


def length_of(user: Iterable[str], flag: str) -> int | None:
    """The user's value of a flag that states a length in tokens; None when absent or left to the engine.

    vLLM chooses the length itself for `-1` and `auto`. Raises InvalidInput.
    """
    words = tuple(user)
    text = value_of(words, flag)
    if text is not None and text.lower() in ("-1", "auto"):
        return None
    return count_of(words, flag)


def document_of(user: Iterable[str], flag: str) -> dict[str, Any]:
    """The user's value of a flag that takes a JSON object, and of its dotted forms (`--flag.key value`).

    Values that aren't JSON objects count as empty: the server reports them.
    """
    words = tuple(user)
    found = _json(value_of(words, flag) or "")
    document: dict[str, Any] = found if isinstance(found, dict) else {}
    for name in sorted(each for each in given(words) if each.startswith(f"{flag}.")):
        # `flag_name` has made `-` of `_`, and the keys of vLLM's settings have `_`.
        *above, last = name.removeprefix(f"{flag}.").replace("-", "_").split(".")
        place = document
        for key in above:
            inner = place.setdefault(key, {})
            place = inner if isinstance(inner, dict) else {}
        place[last] = _json(value_of(words, name) or "")
    return document


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    # Thousands of brackets raise RecursionError in Python's parser.
    except (ValueError, RecursionError):
        return text


def merge(derived: Iterable[Argument], user: Iterable[str]) -> tuple[str, ...]:
    """Derived arguments except those the user sets, followed by the user's, unchanged and in order."""
    words = tuple(user)
    taken = given(words)
    kept = [argument for argument in derived if flag_name(argument[0]) not in taken]
    return tuple(word for argument in kept for word in argument) + words

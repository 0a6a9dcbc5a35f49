"""The grammar of an inference server's arguments: derived ones give way to the user's.

vLLM, SGLang, TGI and llama-server read `--flag value`, `--flag=value` and bare `--flag`, and take `_` for `-` in
a flag's name. Pure: tuples of text in, tuples of text out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from modelimage.errors import InvalidInput

Argument = tuple[str, ...]  # a flag, or a flag and its value

# One thing under several names.
_ALIASES: Final[Mapping[str, str]] = {
    "-tp": "--tensor-parallel-size", "--tp": "--tensor-parallel-size", "--tp-size": "--tensor-parallel-size",
    "-c": "--ctx-size", "-m": "--model", "-a": "--alias", "--host-name": "--host",
}  # fmt: skip


def flag_name(text: str) -> str:
    """The canonical name of a flag: without its value, `-` for `_`, aliases resolved, `--no-x` as `--x`."""
    name = text.partition("=")[0].replace("_", "-")
    name = _ALIASES.get(name, name)
    return f"--{name[5:]}" if name.startswith("--no-") else name


def is_flag(text: str) -> bool:
    """Whether a word opens an argument: `-1` and `-0.5` are values."""
    return text.startswith("-") and not text[1:2].isdigit() and text != "-"


def given(user: Iterable[str]) -> frozenset[str]:
    """Canonical names of all flags that the user gives."""
    return frozenset(flag_name(word) for word in user if is_flag(word))


def value_of(user: Iterable[str], flag: str) -> str | None:
    """The user's last value of a flag; None when it isn't given or stands bare."""
    found, words = None, list(user)
    for i, word in enumerate(words):
        if is_flag(word) and flag_name(word) == flag:
            _, equals, value = word.partition("=")
            following = words[i + 1] if i + 1 < len(words) and not is_flag(words[i + 1]) else None
            found = value if equals else following
    return found


def number_of(user: Iterable[str], flag: str) -> float | None:
    """The user's value of a flag as a positive number; `8k` and `8K` as vLLM reads them. Raises InvalidInput."""
    text = value_of(user, flag)
    if text is None:
        return None
    scale = {"k": 1000, "m": 10**6, "g": 10**9, "K": 1024, "M": 1 << 20, "G": 1 << 30}
    factor = scale.get(text[-1:], 1)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError as error:
        raise InvalidInput(f"{flag} needs a number, not {text!r}") from error
    if not 0 < number < math.inf:
        raise InvalidInput(f"{flag} needs a number above 0, not {text!r}")
    return number


def merge(derived: Iterable[Argument], user: Iterable[str]) -> tuple[str, ...]:
    """Derived arguments that the user doesn't give, then the user's, untouched and in their order."""
    words = tuple(user)
    taken = given(words)
    kept = [argument for argument in derived if flag_name(argument[0]) not in taken]
    return tuple(word for argument in kept for word in argument) + words

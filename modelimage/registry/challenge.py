"""The grammar of WWW-Authenticate (RFC 9110, section 11.6.1). Text in, values out; no sockets, no credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME = re.compile(rf"\s*(?P<scheme>{_WORD})(?=\s|,|$)")
_PARAMETER = re.compile(
    rf'[\s,]*(?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>{_WORD}))\s*(?=,|$)'
)
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9\-._~+/]+=*\s*(?=,|$)")
_MAX_HEADER = 16 << 10


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a server offers. `scheme` and the parameters' names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a header, in order; what can't be understood ends the list. Never raises."""
    text, position = header[:_MAX_HEADER], 0
    challenges: list[Challenge] = []
    while match := _SCHEME.match(text, _skip(text, position)):
        parameters, position = _parameters(text, match.end())
        challenges.append(Challenge(match["scheme"].lower(), parameters))
    return challenges


def _parameters(text: str, position: int) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    while match := _PARAMETER.match(text, position):
        quoted = match["quoted"]
        value = match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        parameters.setdefault(match["name"].lower(), value)
        position = match.end()
    if not parameters and (match := _TOKEN68.match(text, position)):
        position = match.end()
    return parameters, position


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in ", \t":
        position += 1
    return position

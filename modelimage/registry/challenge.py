"""Grammar of WWW-Authenticate (RFC 9110, section 11.6.1). Parses text to values; no sockets, no credentials."""

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
    """One authentication method offered by a server. `scheme` and parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges in a header, in order; parsing stops at the first malformed one. Never raises."""
    # Bounded: the header comes from an untrusted server.
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

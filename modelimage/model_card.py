"""A model card: the front matter of a checkpoint's README, as YAML between two lines of dashes. Pure.

Its members are those of the Hub (huggingface.co/docs/hub/model-cards). Every card is untrusted text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def parse_card(text: str) -> Mapping[str, Any]:
    """The card of a README; empty without one, and for one that is no YAML map. All scalars are text.

    Members may be shared by YAML's aliases: who copies them deeply must bound what that makes.
    """
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}
    try:
        # Strings, lists and maps only, without merge keys, which an untrusted document could nest without end.
        card = yaml.load(match[1], Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, Mapping) else {}


def texts(card: Mapping[str, Any], name: str) -> list[str]:
    """A member that holds one text or a list of them, as a list; other values are left out."""
    value = card.get(name)
    values = value if isinstance(value, list) else [value]
    return [each.strip() for each in values if isinstance(each, str)]

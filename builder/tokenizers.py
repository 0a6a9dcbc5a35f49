"""Finds files that a checkpoint's own documents name, although no rule knows them. Pure.

Tokenizers load their vocabulary under any name, which their code or `tokenizer_config.json` states; a model without it
can't be served.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from modelimage.record import Role

# Longer documents are tokenizers themselves, or weights.
MAX_DOCUMENT_BYTES: Final = 4 << 20
_TEXT = re.compile(r"""["']([^"'\n]{1,255})["']""")


def may_name_files(path: str) -> bool:
    """Whether a packed file may name others: the model's code, and the configurations of it and its tokenizer."""
    name = path.rpartition("/")[2]
    known = ("config.json", "tokenizer_config.json")
    return name in known or name.endswith((".py", "processor_config.json"))


def named_files(documents: Mapping[str, str], candidates: Iterable[str]) -> dict[str, Role]:
    """The candidates that a document quotes by name or path, with their roles. `documents`: texts by path."""
    by_role: dict[Role, set[str]] = {Role.TOKENIZER: set(), Role.CODE: set()}
    for path, text in documents.items():
        role = Role.TOKENIZER if "token" in path.rpartition("/")[2] else Role.CODE
        by_role[role].update(each.rpartition("/")[2] for each in _TEXT.findall(text))
    return {
        path: next(role for role, names in by_role.items() if name in names)
        for path in candidates
        if any((name := path.rpartition("/")[2]) in names for names in by_role.values())
    }


def tokenizer_warning(roles: Mapping[str, Role], ignored: Mapping[str, str]) -> str | None:
    """A sentence if a model with a configuration has no tokenizer; it names what was left out."""
    # Adapters are served with their base model's tokenizer.
    if "config.json" not in roles or "adapter_config.json" in roles:
        return None
    if any(
        role is Role.TOKENIZER and path != "tokenizer_config.json" for path, role in roles.items()
    ):
        return None
    # Hidden files are nobody's tokenizer.
    left = [path for path, reason in ignored.items() if reason != "hidden"]
    shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
    also = f"; left out: {shown}. --include packs a file" if left else ""
    return f"no tokenizer file is packed, which language models need{also}"

"""Finds files that a checkpoint's own documents name: those that no rule knows, and those that are missing. Pure.

Tokenizers load their vocabulary under any name, which their code or `tokenizer_config.json` states; a model without it
can't be served, nor one without the code that its `auto_map` names.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Final

from builder.classify import HIDDEN, UNKNOWN
from modelimage.record import Role

# Longer documents are tokenizers themselves, or weights.
MAX_DOCUMENT_BYTES: Final = 4 << 20
# As `Dense.load` of sentence-transformers and vLLM look for them.
_WEIGHTS: Final = (".safetensors", ".bin")
# Files beside a tokenizer, without a vocabulary.
_BESIDE: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template",
)
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
        # By the Hub's names: tokenizer_config.json, and tokenization_x.py for its code.
        role = Role.TOKENIZER if "token" in path.rpartition("/")[2] else Role.CODE
        by_role[role].update(each.rpartition("/")[2] for each in _TEXT.findall(text))
    return {
        path: next(role for role, names in by_role.items() if name in names)
        for path in candidates
        if any((name := path.rpartition("/")[2]) in names for names in by_role.values())
    }


def missing_code(documents: Mapping[str, Mapping[str, Any]], paths: Container[str]) -> list[str]:
    """Sentences about code that an `auto_map` names and the image won't hold. `documents`: parsed, by path.

    transformers writes a class of another repository as `org/name--module.Class`, and fetches that when it loads it.
    """
    told = {}
    for path, document in documents.items():
        stated = document.get("auto_map")
        folder = path.rpartition("/")[0]
        for name in _class_names(stated.values() if isinstance(stated, Mapping) else ()):
            repository, elsewhere, local = name.rpartition("--")
            module = f"{local.rpartition('.')[0].replace('.', '/')}.py"
            if elsewhere:
                told[name] = (
                    f"{path} loads {local} from the Hub repository {repository}, which nodes may not reach"
                )
            elif (f"{folder}/{module}" if folder else module) not in paths:
                told[name] = f"{path} names {name}, but there is no {module}"
    return list(told.values())


def missing_parts(pipeline: Mapping[str, Any], modules: object, paths: Iterable[str]) -> list[str]:
    """Sentences about parts that diffusers' `model_index.json` or sentence-transformers' `modules.json` names in vain.

    A part without a class is left out on purpose; modules such as Normalize have no files.
    """
    held = list(paths)
    folders = {path.partition("/")[0] for path in held if "/" in path}
    told = []
    for name, stated in pipeline.items():
        is_part = (
            isinstance(stated, list)
            and len(stated) == 2
            and all(isinstance(each, str) for each in stated)
        )
        if is_part and not name.startswith("_") and name not in folders:
            told.append(f"model_index.json names {name}, but nothing of {name}/ is packed")
    for module in modules if isinstance(modules, list) else ():
        # `modules.json` is a stranger's: its entries may be anything.
        path, kind = (
            (str(module.get(key, "")) for key in ("path", "type"))
            if isinstance(module, Mapping)
            else ("", "")
        )
        weights = any(each.startswith(f"{path}/") and each.endswith(_WEIGHTS) for each in held)
        if path and kind.endswith(".Dense") and not weights:
            told.append(f"modules.json names {path}, but no weights of {path}/ are packed")
    return told


def _class_names(values: Iterable[Any]) -> Iterator[str]:
    """The classes of an `auto_map`'s values; a tokenizer has a pair, slow and fast, either of which may be None."""
    for value in values:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and "." in each:
                yield each


def tokenizer_warning(roles: Mapping[str, Role], ignored: Mapping[str, str]) -> str | None:
    """A sentence if a model with a configuration has no tokenizer; it names what was left out."""
    # Adapters are served with their base model's tokenizer.
    if not {"config.json", "params.json"} & roles.keys() or "adapter_config.json" in roles:
        return None
    held = [path.rpartition("/")[2] for path, role in roles.items() if role is Role.TOKENIZER]
    if any(not name.startswith(_BESIDE) and not name.endswith(".jinja") for name in held):
        return None
    # Files that no rule knows come first; hidden ones are nobody's tokenizer.
    left = sorted(
        (path for path in ignored if ignored[path] != HIDDEN), key=lambda p: ignored[p] != UNKNOWN
    )
    shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
    also = f"; left out: {shown}. --include packs a file" if left else ""
    return f"no tokenizer file is packed, which language models need{also}"

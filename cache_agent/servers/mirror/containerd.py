"""The mirror in containerd's registry configuration (docs/hosts.md): `<dir>/<registry>/hosts.toml`.

What others wrote there stays: our host goes before theirs, between two marks, and taking it out again leaves the file
as it was, byte for byte. containerd reads these files at every pull, so nothing is restarted.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from modelimage import durable
from modelimage.errors import InvalidInput

_BEGIN: Final = "# weightyard: begin"
_END: Final = "# weightyard: end"
_CREATED: Final = "# weightyard: this file"
_BLOCK = re.compile(rf"{re.escape(_BEGIN)}\n.*?{re.escape(_END)}\n", re.DOTALL)
_FILE: Final = "hosts.toml"


def with_mirror(text: str | None, url: str) -> str:
    """A hosts.toml with the mirror first; `text` None is no file yet. Raises InvalidInput for one that isn't TOML.

    Laws: `with_mirror(with_mirror(t, u), u) == with_mirror(t, u)` and `without_mirror(with_mirror(t, u)) == t`.
    """
    block = f'{_BEGIN}\n[host.{json.dumps(url)}]\n  capabilities = ["pull", "resolve"]\n{_END}\n'
    if text is None:
        return f"{_CREATED}\n{block}"
    bare = _BLOCK.sub("", text)
    before = _parsed(bare)
    position = _first_table(bare)
    made = bare[:position] + block + bare[position:]
    if bare and not bare[:position].endswith("\n") and position:
        raise InvalidInput("hosts.toml has no line end at its end", hint="Add one.")
    after = _parsed(made)
    after["host"].pop(url)
    if after["host"] != before.get("host", {}):
        raise InvalidInput(f"hosts.toml already names {url}", hint="Take it out first.")
    return made


def without_mirror(text: str) -> str | None:
    """The file without the mirror; None when nothing but ours was in it."""
    bare = _BLOCK.sub("", text)
    return None if bare == f"{_CREATED}\n" else bare


def configure(directory: Path, registries: Iterable[str], url: str) -> list[Path]:
    """Put the mirror before each registry; the files that changed. Raises InvalidInput, NotWritable, NoSpace."""
    changed = []
    for registry in registries:
        path = directory / registry / _FILE
        text = _read(path)
        made = with_mirror(text, url)
        if made != text:
            with durable.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, made)
            changed.append(path)
    return changed


def unconfigure(directory: Path) -> list[Path]:
    """Take the mirror out wherever it is; the files that changed. Raises NotWritable, NoSpace."""
    changed = []
    for path in sorted(directory.glob(f"*/{_FILE}")):
        text = _read(path) or ""
        left = without_mirror(text)
        if left == text:
            continue
        changed.append(path)
        if left is not None:
            _replace(path, left)
            continue
        with durable.writing(path):
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return changed


def _first_table(text: str) -> int:
    """Where the first table begins: containerd tries hosts in the order of the file."""
    match = re.search(r"^[ \t]*\[", text, re.MULTILINE)
    return match.start() if match else len(text)


def _parsed(text: str) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"not a hosts.toml: {error}", hint="Repair the file first.") from error


def _read(path: Path) -> str | None:
    if not path.exists():
        return None
    with durable.reading(path):
        data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8") from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with durable.writing(path):
        temporary.write_bytes(text.encode())
        temporary.replace(path)

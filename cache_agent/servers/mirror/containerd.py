"""Adds the mirror to containerd's registry configuration (docs/hosts.md): `<dir>/<registry>/hosts.toml`.

Existing content stays: the mirror's host is inserted before the others, between two markers, and removing it restores
the file byte for byte. containerd reads these files at every pull, so it needs no restart.
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
    """A hosts.toml with the mirror first. `text` None: no file yet. Raises InvalidInput when it isn't TOML.

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
        raise InvalidInput("hosts.toml doesn't end with a newline", hint="Add one.")
    # The edit is textual, to keep comments and formatting, so its result is checked: the other hosts must be unchanged.
    after = _parsed(made)
    after["host"].pop(url)
    if after["host"] != before.get("host", {}):
        raise InvalidInput(f"hosts.toml already names {url}", hint="Remove that entry first.")
    return made


def without_mirror(text: str) -> str | None:
    """The file's text without the mirror; None when the file was created for the mirror alone."""
    bare = _BLOCK.sub("", text)
    return None if bare == f"{_CREATED}\n" else bare


def configure(directory: Path, registries: Iterable[str], url: str) -> list[Path]:
    """Add the mirror for each registry; return the changed files. Raises InvalidInput, NotWritable, NoSpace."""
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
    """Remove the mirror from every hosts.toml; return the changed files. Raises InvalidInput, NotWritable, NoSpace."""
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
            # Other files in it, such as a registry's certificates, keep the directory.
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return changed


def _first_table(text: str) -> int:
    """The position of the first table. The mirror goes there because containerd tries hosts in file order."""
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
    # By rename, because containerd may read the file at any moment.
    temporary = path.with_name(f".{path.name}.tmp")
    with durable.writing(path):
        temporary.write_bytes(text.encode())
        temporary.replace(path)

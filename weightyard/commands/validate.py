"""`weightyard validate`: checks Workspace and CachedModel files, without a cluster and without a registry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from modelimage.errors import InvalidInput, NotFound, why
from modelimage.source_uris import DOCUMENTS
from weightyard.checked_documents import check_documents
from weightyard.console import Console, pass_console

_STDIN: Final = "-"


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIRECTORY...")
@pass_console
def validate(console: Console, *, files: tuple[str, ...]) -> None:
    """Check Workspace and CachedModel files: fields, values, and what excludes each other. "-" is stdin.

    Of a directory, all .yaml, .yml and .json files below it. Documents of other kinds are left out. Neither a cluster
    nor a registry is asked, so images may not exist, and a model may not fit its GPU: `weightyard render` tells.
    """
    found = [each for file, text in _texts(files) for each in check_documents(text, file)]
    console.table(
        ("where", "kind", "name", "does"),
        [(each.where, each.kind, each.name, each.does) for each in found if not each.problems],
        empty="no Workspace or CachedModel is valid"
        if found
        else "no Workspace or CachedModel was found",
        document=[asdict(each) for each in found],
    )
    problems = [line for each in found for line in each.problems]
    if problems:
        raise InvalidInput(
            "\n".join(problems),
            hint="`weightyard help workspace`, `help rollouts` and `help nodes` show the fields.",
        )


def _texts(files: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names and contents. Raises NotFound and InvalidInput."""
    for given in files:
        if given == _STDIN:
            yield "stdin", sys.stdin.read()
        elif (path := Path(given)).is_dir():
            for each in sorted(path.rglob("*")):
                if each.suffix in DOCUMENTS and each.is_file():
                    yield str(each), _read(each)
        else:
            yield given, _read(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(
            f"no file {path}", hint="Name a file, a directory, or `-` for stdin."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"can't read {path}: {why(error)}") from error

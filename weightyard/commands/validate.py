"""`weightyard validate`: checks Workspace and CachedModel files, without a cluster and without a registry."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from modelimage.document_files import read_document, read_stdin
from modelimage.errors import InvalidInput, NotFound, why
from modelimage.source_uris import DOCUMENTS
from weightyard.checked_documents import CheckedDocument, check_documents, mentions_ours
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
    found = [each for given in files for each in _checked(given)]
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
            hint="`weightyard help workspace`, `help rollouts`, `help nodes` and `help template` show the fields.",
        )


def _checked(given: str) -> Iterator[CheckedDocument]:
    """The documents of a file, of stdin, or of all files below a directory. Raises NotFound, InvalidInput."""
    if given == _STDIN:
        yield from _of_text(read_stdin(), "stdin")
        return
    path = Path(given)
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError as error:
        raise NotFound(
            f"no file {given}", hint="Name a file, a directory, or `-` for stdin."
        ) from error
    except OSError as error:
        raise InvalidInput(f"can't read {given[:200]}: {why(error)}") from error
    if not is_directory:
        yield from _of_text(_read(path), given)
        return
    for each in sorted(path.rglob("*")):
        if each.suffix in DOCUMENTS and each.is_file():
            # A repository has files of all sorts: one that isn't text, or is too large, is none of ours.
            with suppress(InvalidInput):
                text = _read(each)
                if mentions_ours(text):
                    yield from _of_text(text, str(each))


def _of_text(text: str, file: str) -> list[CheckedDocument]:
    try:
        return check_documents(text, file)
    except InvalidInput as error:
        # One file that can't be parsed hides no problem of another.
        return [CheckedDocument(file, "", "", problems=tuple(error.message.splitlines()))]


def _read(path: Path) -> str:
    try:
        return read_document(path)
    except OSError as error:
        raise InvalidInput(f"can't read {path}: {why(error)}") from error

"""`weightyard import`: turns KAITO's documents into Workspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from cache_agent.api.document_errors import values_of
from modelimage.document_files import read_document, read_stdin
from modelimage.errors import InvalidInput, NotFound, why
from weightyard.console import Console, pass_console
from weightyard.kaito.importer import GROUP, Imported, import_documents
from weightyard.kaito.presets import PRESETS, read_catalogue
from weightyard.rendered import rendered_text

_STDIN: Final = "-"


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--to", "target", metavar="REGISTRY/PATH",
    help="Have the models built into images below this.  [default: name the Hub's repositories alone]",
)  # fmt: skip
@click.option(
    "--catalogue", metavar="FILE",
    help="More presets: a YAML file with a `NAME: org/name@revision` for each.",
)  # fmt: skip
@pass_console
def import_command(
    console: Console, *, files: tuple[str, ...], target: str | None, catalogue: str | None
) -> None:
    """Write KAITO's Workspaces and InferenceSets as Workspaces, to stdout. "-" is stdin.

    ConfigMaps that they name are read from the same files. Comments above each Workspace tell what has no equivalent.
    """
    documents = [document for given in files for document in _documents(given)]
    presets = dict(PRESETS)
    if catalogue is not None:
        presets |= read_catalogue(_text(catalogue), name=catalogue)
    found = import_documents(documents, presets=presets, target=target)
    for each in found:
        if each.workspace is None:
            console.say(f"left out {each.source}: {each.notes[0]}")
    written = [each for each in found if each.workspace is not None]
    if not written:
        raise InvalidInput(
            f"no Workspace or InferenceSet of {GROUP.rstrip('/')} that can be served was found",
            hint="`kubectl get workspaces.kaito.sh,inferencesets.kaito.sh -o yaml` writes those of a cluster.",
        )
    console.result([asdict(each) for each in found], _yaml(written))


def _yaml(found: Sequence[Imported]) -> str:
    parts = []
    for each in found:
        header = [f"From {each.source}.", *(f"- {note}" for note in each.notes)]
        parts.append(rendered_text([each.workspace or {}], header))
    return "\n---\n".join(parts)


def _documents(given: str) -> list[dict[str, Any]]:
    """The mappings of a file's YAML documents, and of Lists among them. Raises InvalidInput, NotFound."""
    name = "stdin" if given == _STDIN else given
    text = read_stdin() if given == _STDIN else _text(given)
    items = [each.get("items") if _is_list(each) else [each] for each in values_of(text, name)]
    return [each for listed in items for each in listed or () if isinstance(each, dict)]


def _is_list(document: object) -> bool:
    return isinstance(document, dict) and str(document.get("kind")).endswith("List")


def _text(given: str) -> str:
    try:
        return read_document(Path(given))
    except FileNotFoundError as error:
        raise NotFound(f"no file {given}", hint="Name a file, or `-` for stdin.") from error
    except OSError as error:
        raise InvalidInput(f"can't read {given}: {why(error)}") from error

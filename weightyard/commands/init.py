"""`weightyard init`: writes a commented Workspace to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from modelimage.errors import InvalidInput, NotWritable
from weightyard.console import Console, pass_console
from weightyard.given_workspace import checked_model, model_document, workspace_name
from weightyard.options import WholeNumber, absolute_image
from workspace.document import parse_workspace
from workspace.starter import starter

_EXAMPLE: Final = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"


@click.command("init")
@click.argument("model", default=_EXAMPLE, metavar="[MODEL]")
@click.option(
    "-o", "--output", default="workspace.yaml", show_default=True, metavar="FILE",
    help="The file to write; - is stdout.",
)  # fmt: skip
@click.option("--name", help="The workspace's name.  [default: made of the model's]")
@click.option(
    "--gpus", type=WholeNumber(0, 64),
    help="GPUs of one replica; 0 serves on the CPU.  [default: as many as the model needs]",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@pass_console
def init(
    console: Console, *, model: str, output: str, name: str | None, gpus: int | None, force: bool
) -> None:
    """Write a commented Workspace for MODEL: hf://ORG/NAME, s3://BUCKET/PREFIX, an image or oci:DIR:TAG.

    Without MODEL, it serves a small example from the Hub.
    """
    if Path(model).is_dir():
        raise InvalidInput(
            f"{model} is a directory, but a Workspace names an image",
            hint=f"For an OCI layout, write oci:{model}:TAG. `weightyard build` packs a checkpoint; "
            f"`weightyard up {model}` serves it without a file.",
        )
    model = checked_model(model)
    # A file's directories are relative to the file, which may not be here.
    if Path(output).parent != Path():
        model = absolute_image(model)
    document: dict[str, Any] = model_document(model, name or workspace_name(model))
    if gpus is not None:
        document["spec"]["resources"] = {"gpus": gpus}
    # Parsed as a file would be, for errors that name the field.
    parse_workspace(json.dumps(document), name="--name" if name else "the workspace")
    text = starter(document, file="workspace.yaml" if output == "-" else output)
    if output == "-":
        console.result(document, text.rstrip("\n"))
        return
    _write(Path(output), text, force=force)
    console.result(
        {"file": output, "name": document["metadata"]["name"]},
        f"Wrote {output}. Serve it here with `weightyard up {output}`.",
    )


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InvalidInput(
            f"{path} exists already", hint="Name another with -o, or replace it with --force."
        ) from error
    except OSError as error:
        raise NotWritable(f"can't write {path}: {error.strerror}") from error

"""Reads the WORKSPACE argument of `up` and `render`: a file, stdin, or a model that is named without one.

An image's directory in a file is relative to that file, as in compose files; on the command line it is relative to the
working directory. Both are absolute in the result, since an agent or a background process works elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelimage.document_files import read_document, read_stdin
from modelimage.errors import InvalidInput, NotFound, why
from modelimage.layout import Layout
from modelimage.reference import EngineReference, LayoutReference, parse_image, tag_subject
from modelimage.source_uris import DOCUMENTS, HUB, S3, hub_uri
from weightyard.options import absolute_image
from workspace.document import parse_workspace
from workspace.schema import Workspace

STDIN: Final = "-"
_NAME_LENGTH: Final = 52  # of a Workspace
_FORMS: Final = (
    "Name a Workspace file (`weightyard init` writes one), hf://ORG/NAME, an image such as "
    "registry.example/team/model:tag or oci:DIR:TAG, or the directory of a checkpoint."
)


@dataclass(frozen=True, slots=True)
class GivenWorkspace:
    """A Workspace; `checkpoint` is a local directory that must be built into its model's image first."""

    workspace: Workspace
    checkpoint: Path | None = None


def read_workspace(given: str, *, name: str | None, here: bool = True) -> GivenWorkspace:
    """The Workspace that a command's argument names, with absolute image directories.

    `name` chooses among a file's Workspaces, and names the one of a model. `here`: whether it is for this machine; for
    another one a file's directories mean nothing and stay as written. Raises NotFound and InvalidInput, which name
    the argument as it was given.
    """
    path = Path(given)
    if given == STDIN:
        return GivenWorkspace(from_text(read_stdin(), "stdin", Path() if here else None, name))
    if path.is_dir():
        return _of_directory(path, given, name)
    # What ends like a document and isn't there is a misspelt file, and never an image.
    if path.exists() or given.endswith(DOCUMENTS):
        base = path.parent if here else None
        return GivenWorkspace(from_text(_read(path), given, base, name))
    return GivenWorkspace(_of_model(_model(given), name))


def workspace_name(model: str) -> str:
    """A Workspace's name for a model: the last part of its name, in lower case: `hf://Org/Llama-3.1` is `llama-3-1`."""
    base = model.partition("@")[0].rstrip("/").rpartition("/")[2] or model
    words = re.findall(r"[a-z0-9]+", base.removeprefix("oci:").partition(":")[0].lower())
    name = "-".join(words)[:_NAME_LENGTH].strip("-")
    # Its Service has the same name, which must begin with a letter.
    return name if name[:1].isalpha() else f"model-{name}"[:_NAME_LENGTH].strip("-")


def model_document(model: str, name: str) -> dict[str, Any]:
    """A Workspace's document that serves a model: hf://, s3:// or an image."""
    for scheme, field in ((HUB, "hub"), (S3, "s3")):
        if model.startswith(scheme):
            source = {field: model.removeprefix(scheme)}
            break
    else:
        source = {"image": model}
    return {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "spec": {"model": source},
    }


def _of_model(model: str, name: str | None) -> Workspace:
    chosen = name or workspace_name(model)
    try:
        return Workspace.model_validate(model_document(model, chosen))
    except ValueError as error:
        raise InvalidInput(f"not a workspace's name: {chosen!r}") from error


def checked_model(given: str) -> str:
    """The model of an argument, as a Workspace writes it; a layout may be missing. Raises NotFound, InvalidInput."""
    if given.startswith((HUB, S3)):
        return given
    first = given.partition("/")[0]
    explicit = given.startswith(("oci:", "docker:"))
    # Without a registry's host it is more likely a misspelt file, or a model of the Hub.
    if not explicit and ("/" not in given or not any(mark in first for mark in (".", ":"))):
        if hub_uri(given):
            raise NotFound(f"no file {given}", hint=f"For the Hub's model, write {hub_uri(given)}.")
        raise NotFound(f"no file {given}", hint=_FORMS)
    if first in (".", ".."):
        raise NotFound(f"no file or directory {given}", hint=_FORMS)
    reference = parse_image(given)
    if isinstance(reference, EngineReference):
        raise InvalidInput(f"{given} is in a docker engine", hint="Push it to a registry.")
    return given if isinstance(reference, LayoutReference) else str(reference)


def _model(given: str) -> str:
    """The model of an argument that isn't a file, its directory absolute. Raises NotFound, InvalidInput."""
    checked = checked_model(given)
    if checked.startswith((HUB, S3)):
        return checked
    reference = parse_image(checked)
    if isinstance(reference, LayoutReference):
        _check_layout(reference, given)
    return absolute_image(checked)


def _of_directory(path: Path, given: str, name: str | None) -> GivenWorkspace:
    if (path / "oci-layout").is_file():
        tags = _versions(Layout(path).tags())
        if len(tags) > 1:
            raise InvalidInput(
                f"{given} holds several images: {', '.join(tags[:20])}",
                hint=f"Name one: oci:{given}:{tags[0]}",
            )
        tag = f":{tags[0]}" if tags else ""
        chosen = name or workspace_name(path.absolute().name)
        return GivenWorkspace(_of_model(f"oci:{path.absolute()}{tag}", chosen))
    if not any((path / name).is_file() for name in ("config.json", "params.json")):
        raise NotFound(
            f"{given} is a directory, but neither a checkpoint (it has no config.json) nor an OCI layout",
            hint=_FORMS,
        )
    checkpoint = path.absolute()
    chosen = name or workspace_name(checkpoint.resolve().name)
    # Replaced by the image that is built from it, whose place only `up` knows.
    return GivenWorkspace(_of_model(f"oci:{checkpoint}", chosen), checkpoint)


def _versions(tags: Sequence[str]) -> list[str]:
    """The tags of whole images: a build tags each variant as well, `v1-int8` beside `v1`, and signing the signature."""
    images = [tag for tag in tags if tag_subject(tag) is None]
    return sorted(tag for tag in images if not any(tag.startswith(f"{each}-") for each in images))


def from_text(text: str, shown: str, base: Path | None, name: str | None) -> Workspace:
    """The Workspace in a text that messages call `shown`, its image directories relative to `base`, if any.

    `name`: which of several. Raises InvalidInput, NotFound.
    """
    workspace = parse_workspace(text, name=shown, only=name)
    if base is None:
        return workspace
    document = workspace.to_document()
    model = document["spec"]["model"]
    if "image" in model:
        model["image"] = _placed(model["image"], "spec.model.image", shown, base)
    for index, adapter in enumerate(document["spec"].get("runtime", {}).get("adapters", ())):
        field = f"spec.runtime.adapters[{index}].image"
        adapter["image"] = _placed(adapter["image"], field, shown, base)
    return Workspace.model_validate(document)


def _placed(image: str, field: str, shown: str, base: Path) -> str:
    """A file's image with an absolute directory. Raises NotFound, with the place where it is named."""
    reference = parse_image(image)
    if not isinstance(reference, LayoutReference):
        return image
    _check_layout(reference, image, base=base, place=f"{shown}: {field} names ")
    return absolute_image(image, base)


def _check_layout(
    reference: LayoutReference, given: str, *, base: Path | None = None, place: str = ""
) -> None:
    path = (base or Path()) / reference.path
    if path.is_dir():
        return
    where = "" if reference.path.is_absolute() or not place else f" in {path.parent.absolute()}"
    raise NotFound(
        f"{place}{given}, but there is no directory {reference.path}{where}",
        hint="An image's directory in a file is relative to that file." if place else None,
    )


def _read(file: Path) -> str:
    try:
        return read_document(file)
    except FileNotFoundError as error:
        raise NotFound(f"no file {file}", hint="`weightyard init` writes one.") from error
    except OSError as error:
        raise InvalidInput(f"can't read {file}: {why(error)}", hint="Name a text file.") from error

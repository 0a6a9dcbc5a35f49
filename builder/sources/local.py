"""A checkpoint in a local directory.

Symbolic links to files are followed, because a Hugging Face cache consists of them; links to directories are not,
because they may lead anywhere or form a loop. Nothing about the machine is recorded: no directory name, owner or times.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from builder.sources.interface import Advance, Listing, SourceFile
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint, InvalidInput, NotFound
from modelimage.source_uris import hub_uri

LOCAL_URI = "local"

_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


class LocalSource:
    """A ModelSource for a directory. `uri` and `revision` are labels that the caller guarantees."""

    def __init__(self, root: Path, *, uri: str = LOCAL_URI, revision: str = "") -> None:
        self._root = root
        self._uri = uri
        self._revision = revision

    @property
    def name(self) -> str:
        return str(self._root)

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def revision(self) -> str:
        return self._revision

    @property
    def is_local(self) -> bool:
        return True

    def list(self) -> Listing:
        if not self._root.exists():
            raise NotFound(
                f"there is no directory {self._root}",
                hint="Give a checkpoint directory, or "
                f"{hub_uri(str(self._root)) or 'hf://ORG/NAME'} for one on the Hub.",
            )
        if not self._root.is_dir():
            raise InvalidInput(
                f"{self._root} is not a directory", hint="Give the directory that holds the file."
            )
        ignored: dict[str, str] = {}
        files = sorted(_walk(self._root, "", ignored))
        return Listing(tuple(files), ignored)

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        return self._root / file.path

    def remote(self, file: SourceFile) -> None:
        """None: local files need no streaming."""


def _walk(directory: Path, prefix: str, ignored: dict[str, str]) -> Iterator[SourceFile]:
    with reading(directory), os.scandir(directory) as scan:
        # Listed completely first, so that no directory stays open during the recursion.
        entries = list(scan)
    for entry in entries:
        path = prefix + entry.name
        if entry.name.startswith("."):
            # Not entered: a .git directory may contain sockets, and more files than the model.
            ignored[path] = "hidden"
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{path}/", ignored)
        else:
            yield SourceFile(path, _file_size(Path(entry.path), path))


def _file_size(location: Path, path: str) -> int:
    if location.is_symlink():
        _check_link(location, path)
    with reading(location):
        status = location.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise InvalidCheckpoint(
            f"{path!r} in the checkpoint is {kind}",
            hint="Remove it: a model image holds regular files only.",
        )
    return status.st_size


def _check_link(location: Path, path: str) -> None:
    try:
        target = location.resolve(strict=True)
    except FileNotFoundError as error:
        raise InvalidCheckpoint(
            f"{path!r} in the checkpoint links to a file that isn't there",
            hint="Download the checkpoint again, or remove the link.",
        ) from error
    # RuntimeError: what `resolve` raises for a loop before Python 3.13.
    except (OSError, RuntimeError) as error:
        raise InvalidCheckpoint(
            f"{path!r} in the checkpoint is a link that can't be followed (a loop?)",
            hint="Remove the link.",
        ) from error
    if target.is_dir():
        raise InvalidCheckpoint(
            f"{path!r} in the checkpoint links to a directory",
            hint="Replace the link by the directory itself, or remove it.",
        )

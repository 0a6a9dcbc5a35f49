"""The hidden staging directory beside a result, and the one rename that publishes it.

Law: the result's path either doesn't exist (or is an empty directory) or holds a complete, durable
result. An interrupted run leaves its finished files for the next one, which uses them only when the
fingerprint (source and options) is the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelimage.durable import fsync_path, write_error
from modelimage.errors import Busy, InvalidCheckpoint, InvalidInput
from quantize.errors import QualityTooLow

_FINGERPRINT: Final = ".fingerprint"
_UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
)


class Staging:
    """The staging directory of one result. Created by `open_staging`."""

    def __init__(self, directory: Path, result: Path) -> None:
        self.directory = directory
        self._result = result

    def write(self, name: str, data: bytes) -> None:
        """Write a small file atomically and durably."""
        # `publish` removes what still has this suffix: a file interrupted here never gets into a result.
        temporary = self.directory / f"{name}.tmp"
        temporary.write_bytes(data)
        self.finish(temporary, name)

    def copy(self, source: Path) -> None:
        """Copy a small file of the source by content: the source may be a link into a cache."""
        temporary = self.directory / f"{source.name}.tmp"
        shutil.copyfile(source, temporary)
        self.finish(temporary, source.name)

    def finish(self, temporary: Path, name: str) -> None:
        """Make a file durable, then give it its final name."""
        # In this order: after a crash a name in the directory must mean a complete file.
        fsync_path(temporary)
        temporary.rename(self.directory / name)
        fsync_path(self.directory)

    def publish(self) -> None:
        """Publish the result. Everything in the directory must be finished."""
        for path in self.directory.iterdir():
            if path.name.startswith(".") or path.name.endswith((".tmp", ".sqnr")):
                path.unlink()
        # Before the rename: a published directory must be complete after a power loss.
        fsync_path(self.directory)
        self.directory.rename(self._result)
        fsync_path(self._result.parent)

    def discard(self) -> None:
        shutil.rmtree(self.directory)


@contextlib.contextmanager
def open_staging(result: Path, fingerprint: str) -> Iterator[Staging]:
    """Open the staging directory of `result`, with the files of an interrupted run of the same fingerprint.

    Invalid content (InvalidCheckpoint, QualityTooLow) would be invalid again, so then everything is discarded. Raises
    Busy, InvalidInput, NoSpace, NotWritable.
    """
    result = result.absolute()
    with mapped_os_errors(result):
        _check_free(result)
        result.parent.mkdir(parents=True, exist_ok=True)
        directory = result.parent / f".{result.name}.partial"
        directory.mkdir(exist_ok=True)
        # Two runs for one result would mix their files.
        with _locked(directory):
            _keep_if_same(directory, fingerprint)
            staging = Staging(directory, result)
            try:
                yield staging
            except (InvalidCheckpoint, QualityTooLow):
                staging.discard()
                raise


@contextlib.contextmanager
def mapped_os_errors(path: Path) -> Iterator[None]:
    """Map OSErrors of a full disk or an unwritable directory to NoSpace and NotWritable."""
    try:
        yield
    except OSError as error:
        # Others may come from reading the source, which isn't the result's fault.
        if error.errno in _UNWRITABLE:
            raise write_error(path, error) from error
        raise


def _check_free(result: Path) -> None:
    if result.is_symlink() or result.is_file():
        raise InvalidInput(f"{result} is a file", hint="Name a directory that doesn't exist yet.")
    if result.is_dir() and any(result.iterdir()):
        raise InvalidInput(
            f"{result} is not empty", hint="Name a directory that doesn't exist yet."
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # A lock of the kernel, not a file: it ends with its process, however that ends.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"another process is writing {directory}", hint="Wait until it is done."
            ) from error
        yield
    finally:
        os.close(descriptor)


def _keep_if_same(directory: Path, fingerprint: str) -> None:
    """Empty the directory unless it belongs to the same source and options."""
    marker = directory / _FINGERPRINT
    if marker.is_file() and marker.read_text() == fingerprint:
        return
    for path in directory.iterdir():
        # Also the scratch directories that an engine left behind.
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    # Last: after a crash before it, the next run empties the directory again.
    marker.write_text(fingerprint)
    fsync_path(marker)

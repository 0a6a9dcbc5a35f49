"""Mounts outside Kubernetes: a model at a directory of the user's choice, with the user's own permission to mount."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_agent.mounter import kernel
from cache_agent.mounter.binder import shown_key
from cache_agent.mounter.kernel import opened
from modelimage.digest import Digest
from modelimage.errors import Busy, InvalidInput, NotFound, NotWritable


def lease_id(target: Path) -> str:
    """The lease id of a mount point: the same when mounting and unmounting."""
    return f"mount-{hashlib.sha256(os.fsencode(target)).hexdigest()[:24]}"


def mount_model(model: Path, target: Path) -> bool:
    """Mount a model at an empty directory, read-only, creating the directory. False when it is mounted already.

    Raises Busy when something else is mounted there, InvalidInput when the directory isn't empty,
    NotWritable without permission to mount.
    """
    with _mapped(target):
        target.mkdir(parents=True, exist_ok=True)
        with opened(model) as source, opened(target) as place:
            mounted = kernel.is_mount(place)
            same = os.path.sameopenfile(source, place)
            if mounted and not same:
                raise Busy(
                    f"something else is mounted at {target}", hint="Choose another directory."
                )
            if not mounted and any(target.iterdir()):
                raise InvalidInput(f"{target} isn't empty", hint="Choose an empty directory.")
            if same and kernel.is_locked_down(place):
                return False
        # Outside the block: an open handle would keep the mount busy.
        if mounted:
            kernel.unmount(str(target))  # mounted by another program, and writable
        with opened(model) as source, opened(target) as place:
            kernel.bind(source, place)
    return True


def shown_at(target: Path) -> Digest | None:
    """The model mounted at a directory, or None. Raises InvalidInput when something else is mounted there."""
    try:
        with _mapped(target), opened(target) as place:
            if not kernel.is_mount(place):
                return None
            key = shown_key(place)
    except NotFound:
        return None
    if key is None:
        raise InvalidInput(f"what is mounted at {target} isn't a model", hint="Use umount(8).")
    return key


def unmount_model(target: Path) -> Digest | None:
    """Unmount a model from a directory, which stays; returns its key, or None when nothing is mounted there.

    Raises Busy while a process uses it, InvalidInput when it isn't a model.
    """
    key = shown_at(target)
    if key is not None:
        with _mapped(target):
            kernel.unmount(str(target))
    return key


@contextmanager
def _mapped(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"{target} is in use", hint="Stop what reads from it first.") from error
        if error.errno == errno.ENOENT:
            raise NotFound(f"{target}: {error.strerror}") from error
        raise NotWritable(
            f"can't mount at {target}: {error.strerror}",
            hint="Mounting needs root; the directory that `weightyard pull` prints can be read without.",
        ) from error

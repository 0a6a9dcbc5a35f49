"""Binds and unbinds: from a model key and a pod's volume to mount(2), idempotent, contained, race-free.

Every path is walked once, from an open directory, without following a link; what is then mounted is the handle, not
the path. Two calls make a bind read-only, so a crash between them leaves it writable: asked again, it is locked down.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cache_agent.mounter import kernel
from cache_agent.mounter.protocol import Target
from modelimage.digest import Digest
from modelimage.errors import Busy, InvalidInput, NotFound, NotWritable

_MODE = 0o750


@dataclass(frozen=True, slots=True)
class Binder:
    """`models` is the store's directory of models; `kubelet` its own, the same path as on the host."""

    models: Path
    kubelet: Path

    def bind(self, key: Digest, target: Target) -> bool:
        """Show a model at a pod's volume, read-only. False when it was there already.

        Raises NotFound without the model or kubelet's directory, Busy when something else is mounted there,
        NotWritable when this process may not mount.
        """
        with self._model(key) as model, self._volume(target) as parent:
            with _mapped(target):
                made = _make(parent)
            with _opened(parent) as place:
                if os.path.sameopenfile(model, place):
                    return self._lock_down(parent, place, target)
                if is_mount(parent, place):
                    raise Busy(f"something else is mounted at the volume of pod {target.pod}")
                try:
                    with _mapped(target):
                        kernel.bind(model, place)
                except BaseException:
                    if made:
                        os.rmdir("mount", dir_fd=parent)
                    raise
            with _opened(parent) as place:
                self._lock_down(parent, place, target)
        return True

    def unbind(self, target: Target) -> bool:
        """Take a model away from a pod's volume, and its directory. False when nothing was there.

        Raises Busy while a process uses it; InvalidInput when what is mounted there is no model.
        """
        changed = False
        try:
            with self._volume(target) as parent:
                while self._bound(parent, target) is not None:
                    with _mapped(target):
                        kernel.unmount(f"/proc/self/fd/{parent}/mount")
                    changed = True
                with _mapped(target):
                    os.rmdir("mount", dir_fd=parent)
        except NotFound:
            return changed
        return True

    def look(self, target: Target) -> Digest | None:
        """The model that a pod's volume shows, locked down; None when it shows none."""
        try:
            with self._volume(target) as parent:
                return self._bound(parent, target)
        except NotFound:
            return None

    def _lock_down(self, parent: int, place: int, target: Target) -> bool:
        if kernel.is_locked_down(place):
            return False
        try:
            with _mapped(target):
                kernel.lock_down(f"/proc/self/fd/{parent}/mount")
        except BaseException:
            # Better nothing than something that a pod could write to.
            kernel.unmount(f"/proc/self/fd/{parent}/mount")
            raise
        return True

    def _bound(self, parent: int, target: Target) -> Digest | None:
        """The model mounted on top at a volume. Raises InvalidInput when it is something else."""
        with _opened(parent) as place:
            if not is_mount(parent, place):
                return None
            seen = os.fstat(place)
            for entry in os.scandir(self.models):
                if len(entry.name) == 64 and entry.inode() == seen.st_ino:
                    with self._model(Digest(entry.name)) as model:
                        if os.path.sameopenfile(model, place):
                            return Digest(entry.name)
            name = Path(root_of(place)).name
        if is_key(name):
            return Digest(name)  # removed from the store by hand while it was mounted
        raise InvalidInput(f"what is mounted at the volume of pod {target.pod} is no model")

    @contextmanager
    def _model(self, key: Digest) -> Iterator[int]:
        with opened_directory(self.models) as models:
            try:
                fd = kernel.open_beneath(models, key.hex)
            except OSError as error:
                raise NotFound(f"no model {key.short} in the store: {error.strerror}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _volume(self, target: Target) -> Iterator[int]:
        """The directory that kubelet made for a volume."""
        with opened_directory(self.kubelet) as kubelet, _mapped(target):
            fd = kernel.open_beneath(kubelet, target.parent)
        try:
            yield fd
        finally:
            os.close(fd)


def _make(parent: int) -> bool:
    try:
        os.mkdir("mount", _MODE, dir_fd=parent)
    except FileExistsError:
        return False
    return True


@contextmanager
def _opened(parent: int) -> Iterator[int]:
    """A handle of a volume's mount point: of what is mounted there, if anything is."""
    try:
        fd = kernel.open_beneath(parent, "mount")
    except FileNotFoundError as error:
        raise NotFound("the volume's directory isn't there") from error
    except OSError as error:
        raise InvalidInput(f"the volume's mount point is no directory: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """A handle (O_PATH) of a directory. Raises NotFound."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _mapped(target: Target) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"the volume of pod {target.pod}"
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise NotFound(f"{where} isn't there: {error.strerror}") from error
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            raise Busy(f"{where} is in use: {error.strerror}") from error
        if error.errno in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR):
            raise InvalidInput(f"{where} isn't a plain directory: {error.strerror}") from error
        raise NotWritable(
            f"{where} can't be mounted: {error.strerror}",
            hint="The mounter needs CAP_SYS_ADMIN and kubelet's directory with mount propagation.",
        ) from error


def is_mount(parent: int, place: int) -> bool:
    """Whether a handle is of another mount than its parent (the mount's number is in fdinfo)."""
    return _mount_id(parent) != _mount_id(place)


def _mount_id(fd: int) -> str:
    return next(
        line.split()[1]
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        if line.startswith("mnt_id:")
    )


def root_of(place: int) -> str:
    """What of its filesystem a mount shows, from mountinfo; empty when it isn't listed."""
    number = _mount_id(place)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[0] == number:
            return fields[3].removesuffix("//deleted")
    return ""


def is_key(name: str) -> bool:
    """Whether a directory's name is a model key."""
    return len(name) == 64 and all(letter in "0123456789abcdef" for letter in name)

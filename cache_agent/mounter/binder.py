"""Binds models to pods' volumes with mount(2) and unbinds them: idempotent, confined, race-free.

Every path is resolved once, from an open directory, without following links; the mount then uses the handle, not the
path. A bind is read-only before it is attached, so a writable one is never visible.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from cache_agent.mounter import kernel
from cache_agent.mounter.orders import VolumeTarget
from modelimage.digest import Digest
from modelimage.errors import Busy, InvalidInput, NotFound, NotWritable

_MODE = 0o750


@dataclass(frozen=True, slots=True)
class Binder:
    """`models`: the model directory of each root; `kubelet`: the kubelet's directory, same path as on the host."""

    models: Sequence[Path]
    kubelet: Path

    def bind(self, key: Digest, target: VolumeTarget) -> bool:
        """Mount a model at a pod's volume, read-only. False when it was mounted already.

        Raises NotFound without the model or the kubelet's directory, Busy when something else is mounted there,
        NotWritable without permission to mount.
        """
        with _mapped(target), self._model(key) as model, self._volume(target) as parent:
            # CSI: the kubelet creates the parent, the driver the target itself.
            made = _make(parent)
            with kernel.opened("mount", parent) as place:
                shown = os.path.sameopenfile(model, place)
                # The kubelet repeats a publish until it succeeds.
                if shown and kernel.is_locked_down(place):
                    return False
                if not shown and kernel.is_mount(place):
                    raise Busy(f"something else is mounted at the volume of pod {target.pod}")
            # Outside the block: an open handle would keep the mount busy.
            if shown:
                kernel.unmount(_mounted(parent))  # mounted by another program, and writable
            try:
                # Opened again: the handle from before showed the old mount.
                with kernel.opened("mount", parent) as place:
                    kernel.bind(model, place)
            except BaseException:
                # Only if this call created it.
                if made:
                    os.rmdir("mount", dir_fd=parent)
                raise
        return True

    def unbind(self, target: VolumeTarget) -> bool:
        """Unmount a model from a pod's volume and remove the directory. False when nothing was there.

        Raises Busy while a process uses it; InvalidInput when another thing than a model is mounted there.
        """
        changed = False
        try:
            with _mapped(target), self._volume(target) as parent:
                # Mounts may be stacked: the directory can be removed only after the last one.
                while _shown(parent, target) is not None:
                    kernel.unmount(_mounted(parent))
                    changed = True
                os.rmdir("mount", dir_fd=parent)
        except NotFound:
            # Unpublishing again isn't an error (CSI).
            return changed
        return True

    def look(self, target: VolumeTarget) -> Digest | None:
        """The model mounted at a pod's volume, or None. Raises InvalidInput when it isn't a model."""
        try:
            with _mapped(target), self._volume(target) as parent:
                return _shown(parent, target)
        except NotFound:
            return None

    @contextmanager
    def _model(self, key: Digest) -> Iterator[int]:
        problem: OSError | None = None
        for root in self.models:
            with ExitStack() as stack:
                try:
                    # Below the root, the agent's user may put links anywhere, also in the place of `models`.
                    store = stack.enter_context(kernel.opened(root.parent))
                    models = stack.enter_context(kernel.opened(root.name, store))
                    model = stack.enter_context(kernel.opened(key.hex, models))
                except OSError as error:
                    problem = error
                else:
                    yield model
                    return
        why = problem.strerror if problem else "it has no root"
        raise NotFound(f"no model {key.short} in the store: {why}") from problem

    @contextmanager
    def _volume(self, target: VolumeTarget) -> Iterator[int]:
        """The directory that the kubelet made for a volume."""
        with kernel.opened(self.kubelet) as home, kernel.opened(target.parent, home) as parent:
            yield parent


def shown_key(place: int) -> Digest | None:
    """The key of a mounted model, from its directory's name: the directory itself may have been removed since."""
    name = PurePath(kernel.root_of(place)).name
    return Digest(name) if re.fullmatch("[0-9a-f]{64}", name) else None


def _shown(parent: int, target: VolumeTarget) -> Digest | None:
    """The key of the topmost model mounted at a volume. Raises InvalidInput when it is something else."""
    with kernel.opened("mount", parent) as place:
        if not kernel.is_mount(place):
            return None
        key = shown_key(place)
    if key is None:
        raise InvalidInput(f"what is mounted at the volume of pod {target.pod} isn't a model")
    return key


def _mounted(parent: int) -> str:
    # umount2 only takes paths; one through the open directory can't be redirected by a rename.
    return f"/proc/self/fd/{parent}/mount"


def _make(parent: int) -> bool:
    try:
        os.mkdir("mount", _MODE, dir_fd=parent)
    except FileExistsError:
        return False
    return True


@contextmanager
def _mapped(target: VolumeTarget) -> Iterator[None]:
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

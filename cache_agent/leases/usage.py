"""Current users of models, as observed on this machine: pods by mounts, processes by mapped or open files.

Restores leases that were lost with the ledger. Users that this process may not inspect (other users'
processes, unless it is root) are missed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_agent.leases.holders import Machine, ProcessName
from cache_agent.mounter.manual import lease_id
from cache_agent.store.paths import parse_hex
from cache_agent.store.values import Holder, HolderKind, Use
from modelimage.digest import Digest

# Of a mount point, in a holder's name.
NAME_LENGTH: Final = 400


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: the mounted directory (`root`, within its filesystem) and the mount point."""

    root: str
    target: str


def users_of(models: Path, machine: Machine) -> list[Use]:
    """Every use of the models in a store's directory, each holder once per model."""
    mounts = parse_mountinfo(machine.mountinfo())
    found = [*mounted(mounts, models, machine.kubelet), *_mapped(models, machine)]
    return list(dict.fromkeys(found))


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """Parse proc(5) mountinfo, with octal escapes resolved."""
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) >= 5:
            yield Mount(_unescaped(fields[3]), _unescaped(fields[4]))


def mounted(mounts: Iterable[Mount], models: Path, kubelet: Path) -> Iterator[Use]:
    """Uses by bind mounts of models: a mount in a pod's volume belongs to the pod, any other to a manual holder.

    Paths are compared by their end, since a mount's root is relative to its filesystem.
    """
    for mount in mounts:
        root, target = Path(mount.root), Path(mount.target)
        key = parse_hex(root.name)
        if key is None or root.parent.name != models.name:
            continue
        # Another store's mounts must not count.
        if not str(models).endswith(str(root.parent)):
            continue
        if target.is_relative_to(kubelet / "pods"):
            pod = target.relative_to(kubelet / "pods").parts[0]
            yield Use(key, Holder(HolderKind.POD, pod))
        else:
            # A mount point may hold any bytes, but a holder that can't be parsed again would damage the ledger.
            name = "".join(letter if letter.isprintable() else "?" for letter in str(target))
            holder = Holder(HolderKind.MANUAL, f"mount {name[:NAME_LENGTH]}")
            yield Use(key, holder, lease_id(target))


def _mapped(models: Path, machine: Machine) -> Iterator[Use]:
    """Uses by processes that have files of a model mapped or open, except this process."""
    for directory in machine.proc.glob("[0-9]*"):
        pid = int(directory.name)
        if pid == os.getpid():
            # This process reads models only to cache them.
            continue
        with suppress(OSError):  # it ended meanwhile, or may not be inspected
            keys = _keys(_paths(directory), models)
            start = machine.start_time(pid)
            if keys and start is not None:
                holder = Holder(HolderKind.PROCESS, str(ProcessName(pid, start, machine.boot())))
                yield from (Use(key, holder) for key in sorted(keys))


def _paths(process: Path) -> Iterator[str]:
    # A path may hold any bytes.
    for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            yield fields[5]
    # Open files too: a process that reads without mapping uses the model all the same.
    for fd in (process / "fd").iterdir():
        with suppress(OSError):
            yield str(fd.readlink())


def _keys(paths: Iterable[str], models: Path) -> set[Digest]:
    prefix = f"{models}/"
    names = {path[len(prefix) :].partition("/")[0] for path in paths if path.startswith(prefix)}
    return {key for name in names if (key := parse_hex(name)) is not None}


def _unescaped(text: str) -> str:
    # The backslash last: its replacement must not form another escape.
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text

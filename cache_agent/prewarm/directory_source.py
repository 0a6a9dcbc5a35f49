"""The desired state from a directory or a file, read at the start and after every change.

Changes come from inotify, so an idle directory costs nothing. Filesystems without change events, such as NFS, are
polled.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cache_agent.api.cached_model import CachedModel
from cache_agent.node.desired_detail import RefusedDocument
from cache_agent.node.threads import wait_event
from cache_agent.prewarm.documents import Parsed, parse_documents, refused
from modelimage.document_files import read_document
from modelimage.errors import InvalidInput, NotWritable

SUFFIXES: Final = (".yaml", ".yml", ".json")
# The polling interval in seconds. With inotify it is only a safety net.
LOOK_SECONDS: Final = 30.0
# Changes come in bursts, such as writing a file and renaming it: wait for the burst to end.
_SETTLE_SECONDS: Final = 0.05
_MOST_REFUSED: Final = 20  # of one file

_CLOEXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
# CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF.
_CHANGES: Final = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800  # see inotify(7)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """All desired models, by name, and the documents that were refused."""

    models: dict[str, CachedModel]
    refused: tuple[RefusedDocument, ...] = ()


@dataclass
class DirectorySource:
    """One directory of documents, or one file."""

    path: Path
    # Each file's identity and documents, so that unchanged files aren't parsed again.
    _seen: dict[Path, tuple[tuple[int, ...], Parsed]] = field(default_factory=dict)

    def make(self) -> None:
        """Create the directory if it is missing. Raises NotWritable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritable(f"can't make {self.path}: {error.strerror}") from error

    def read(self) -> DesiredState:
        """Read all documents. Files that didn't change since the last call aren't read again."""
        before, self._seen = self._seen, {}
        models: dict[str, CachedModel] = {}
        files: dict[str, Path] = {}
        problems: list[RefusedDocument] = []
        for path in self._files():
            parsed = self._parsed(path, before)
            found = list(parsed.refused)
            for model in parsed.models:
                # The first file in sorted order wins, so that the result doesn't depend on the directory's order.
                first = files.setdefault(model.name, path)
                if models.setdefault(model.name, model) is not model:
                    why = (
                        "it is there twice, and the first counts"
                        if first == path
                        else f"there is one of this name in {first.name}, which counts"
                    )
                    found.append(refused(path.name, why, model.name, model.spec.image))
            problems += _bounded(found, path)
        return DesiredState(models, tuple(problems))

    async def watch(
        self, notify: Callable[[DesiredState], None], look: float = LOOK_SECONDS
    ) -> None:
        """Call `notify` with the desired state now and after each change, until cancelled. `look`: polling interval."""
        changed = asyncio.Event()
        # Watch before the first read, or a change between the two would be lost.
        with self._changes(changed.set):
            last: DesiredState | None = None
            while True:
                # In a thread: parsing a file of strangers must not stop the agent.
                found = await asyncio.to_thread(self.read)
                if found != last:
                    last = found
                    notify(found)
                if await wait_event(changed, look):
                    await asyncio.sleep(_SETTLE_SECONDS)
                changed.clear()

    @property
    def _directory(self) -> Path:
        """The watched directory: a file's parent, because replacing a file by rename is an event of its directory."""
        return self.path if self.path.is_dir() else self.path.parent

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path] if self.path.exists() else []
        try:
            return sorted(
                path
                for path in self.path.iterdir()
                # Hidden files are editors' temporary files and the `..data` links of mounted ConfigMaps.
                if path.suffix in SUFFIXES and not path.name.startswith(".")
            )
        except OSError:
            return []  # removed meanwhile

    def _parsed(self, path: Path, before: dict[Path, tuple[tuple[int, ...], Parsed]]) -> Parsed:
        try:
            facts = path.stat()
            # Inode and ctime too, because a rename or a quick rewrite can keep size and mtime.
            identity = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            known = before.get(path)
            if known is not None and known[0] == identity:
                parsed = known[1]
            else:
                base = path.absolute().parent
                parsed = parse_documents(read_document(path), where=path.name, base=base)
        except FileNotFoundError:
            return Parsed()
        except InvalidInput as error:
            said = error.message.replace(str(path), "it")
            parsed = _unreadable(path, f"can't be read: {said}")
        except OSError as error:
            return _unreadable(path, f"can't be read: {error}")
        except Exception as error:  # noqa: BLE001 - whatever one document does, the others count and the agent goes on
            parsed = _unreadable(path, f"{type(error).__name__}: {str(error)[:200]}")
        self._seen[path] = (identity, parsed)
        return parsed

    @contextmanager
    def _changes(self, notify: Callable[[], None]) -> Iterator[None]:
        """Call `notify` in the event loop after every change. Without inotify it is never called."""
        libc = ctypes.CDLL(None, use_errno=True)
        # By ctypes: polling would be late, and the standard library has no inotify.
        fd = libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        if fd < 0:
            yield
            return
        loop = asyncio.get_running_loop()

        def drain() -> None:
            # What the events say doesn't matter, since the directory is read whole; unread, they would wake the loop
            # for ever.
            with suppress(BlockingIOError):
                while os.read(fd, 1 << 16):
                    pass
            notify()

        try:
            libc.inotify_add_watch(fd, os.fsencode(self._directory), _CHANGES)
            loop.add_reader(fd, drain)
            yield
        finally:
            loop.remove_reader(fd)
            os.close(fd)


def _unreadable(path: Path, why: str) -> Parsed:
    return Parsed(refused=(refused(path.name, why),))


def _bounded(found: list[RefusedDocument], path: Path) -> list[RefusedDocument]:
    """So many of a file's refused documents that a log and a status can take them, equal ones once."""
    counted = Counter(found)
    found = [
        replace(each, why=f"{each.why} ({count} times)") if count > 1 else each
        for each, count in counted.items()
    ]
    more = len(found) - _MOST_REFUSED
    if more <= 0:
        return found
    return [*found[:_MOST_REFUSED], refused(path.name, f"{more} more problems")]

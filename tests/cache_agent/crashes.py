"""Ways for a disk and a machine to fail at one exact step, counted by the store's own changes of the disk."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from cache_agent.node.node import Node
from cache_agent.store.disk import Operation
from tests.cache_agent.nodes import pull


@dataclass
class CountsSteps:
    """Counts changes, and keeps what they were."""

    steps: list[Operation] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, operation: Operation) -> None:
        with self.lock:
            self.steps.append(operation)


@dataclass
class FailsAtStep(CountsSteps):
    """A disk whose step number `at` fails with `errno`, once."""

    at: int = -1
    errno: int = 0

    def __call__(self, operation: Operation) -> None:
        super().__call__(operation)
        if len(self.steps) == self.at + 1:
            raise OSError(self.errno, os.strerror(self.errno))


@dataclass
class KillsAtStep(CountsSteps):
    """A process that is killed just before its step number `at`."""

    at: int = -1

    def __call__(self, operation: Operation) -> None:
        super().__call__(operation)
        if len(self.steps) == self.at + 1:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class SlowAtStep(CountsSteps):
    """A disk whose step number `at` is so slow that `meanwhile` runs before it, in a thread of its own.

    The step goes on when `meanwhile` has ended or waits for what the step's thread holds, which `patience` seconds
    stand for. Steps of other threads don't count.
    """

    meanwhile: Callable[[], None] = lambda: None
    at: int = -1
    patience: float = 0.1
    thread: threading.Thread | None = None
    owner: int = 0

    def __post_init__(self) -> None:
        self.owner = threading.get_ident()

    def __call__(self, operation: Operation) -> None:
        if threading.get_ident() != self.owner:
            return
        super().__call__(operation)
        if len(self.steps) == self.at + 1:
            self.thread = threading.Thread(target=self.meanwhile)
            self.thread.start()
            self.thread.join(self.patience)

    def settle(self) -> None:
        """Wait for the end of `meanwhile`."""
        if self.thread is not None:
            self.thread.join()


@dataclass
class BadSectors:
    """A disk that can't read some bytes of a file: each read of them fails with EIO, until the file is another one.

    Stands in for `os.preadv`. `failed` counts.
    """

    path: Path
    start: int
    stop: int
    failed: int = 0
    real: Callable[..., int] = os.preadv

    def __post_init__(self) -> None:
        self.inode = self.path.stat().st_ino

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        stop = offset + sum(map(len, buffers))
        if os.fstat(fd).st_ino == self.inode and offset < self.stop and self.start < stop:
            self.failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.real(fd, buffers, offset)


@dataclass
class FailingRead:
    """A disk whose read number `at` fails with EIO, once. Stands in for `os.preadv`."""

    at: int = -1
    reads: int = 0
    real: Callable[..., int] = os.preadv

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.reads += 1
        if self.reads == self.at + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.real(fd, buffers, offset)


@dataclass
class UnreadableFile:
    """A disk that can't read one small file (EIO), until the file is another one. Stands in for `os.fdopen`."""

    path: Path
    failed: int = 0
    real: Callable[..., IO[bytes]] = os.fdopen

    def __post_init__(self) -> None:
        # Held open: a file system gives the number of a removed file to the next one.
        self.held = os.open(self.path, os.O_RDONLY)
        self.inode = os.fstat(self.held).st_ino

    def __call__(self, fd: int, *given: Any, **named: Any) -> IO[bytes]:
        if os.fstat(fd).st_ino == self.inode:
            self.failed += 1
            os.close(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.real(fd, *given, **named)


@dataclass
class LedgerFailsAtStep(CountsSteps):
    """A disk that takes nothing more of a ledger from the store's step number `at` on, until `mend`.

    The system's limit of a file's size stands in for the disk: SQLite's own writes fail, with what it calls an I/O
    error. Files that stay shorter than the ledger's log was then are written as ever.
    """

    log: Path = Path()
    at: int = -1

    def __call__(self, operation: Operation) -> None:
        super().__call__(operation)
        if len(self.steps) == self.at + 1:
            self.fail()

    def fail(self) -> None:
        """Take nothing more from now on."""
        _limit_files(self.log.stat().st_size)

    @staticmethod
    def repair() -> None:
        """Work again."""
        _limit_files(resource.RLIM_INFINITY)


def _limit_files(size: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (most if size == resource.RLIM_INFINITY else size, most)
    )


def steps_of_a_pull(open_node: Callable[[ExitStack, CountsSteps], Node]) -> range:
    """The numbers of the steps that a pull takes on a node that `open_node` opens."""
    counter = CountsSteps()
    with ExitStack() as stack:
        node = open_node(stack, counter)
        opening = len(counter.steps)
        pull(node)
        return range(opening, len(counter.steps))


def in_child(body: Callable[[], None]) -> int:
    """Run `body` in a child process: its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        # Collecting what other libraries made in the parent's threads may crash here.
        gc.freeze()
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class PowerLoss(CountsSteps):
    """Keeps, at every step, a copy of the store as a disk would hold it that lost power there.

    What counts as kept: a file's bytes as of its last fsync, a directory's names as of its last sync, and the ledger
    as it is, since SQLite syncs that itself. Everything else is lost, which is the worst a filesystem may do.
    """

    root: Path = Path()
    copies: Path = Path()
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    directories: set[int] = field(default_factory=set)
    pending: dict[int, Operation] = field(default_factory=dict)

    def __call__(self, operation: Operation) -> None:
        with self.lock:
            thread = threading.get_ident()
            self._settle(self.pending.pop(thread, None))
            self.pending[thread] = operation
            self.steps.append(operation)
            self._copy(self.copies / f"{len(self.steps) - 1:04d}")

    def at_the_end(self) -> Path:
        """A copy of what is kept when all that was begun has happened."""
        with self.lock:
            for done in self.pending.values():
                self._settle(done)
            self.pending.clear()
            self._copy(self.copies / "end")
        return self.copies / "end"

    def _settle(self, done: Operation | None) -> None:
        """This thread's step before has happened: note what it made durable, by inode, as names change."""
        if done is None:
            return
        if done.kind == "fsync" and done.path.exists():
            self.contents[done.path.stat().st_ino] = done.path.read_bytes()
        if done.kind == "sync_directory" and done.path.is_dir():
            self._keep_names(done.path)
        if done.kind == "sync_filesystem":
            for path in (self.root, *self.root.rglob("*")):
                if path.is_dir():
                    self._keep_names(path)
                else:
                    self.contents[path.stat().st_ino] = path.read_bytes()

    def _keep_names(self, directory: Path) -> None:
        entries = list(directory.iterdir())
        self.names[directory.stat().st_ino] = {e.name: e.lstat().st_ino for e in entries}
        self.directories |= {e.lstat().st_ino for e in entries if e.is_dir()}

    def _copy(self, target: Path) -> None:
        self._copy_directory(self.root.stat().st_ino, target, {})
        for name in ("ledger.db", "ledger.db-wal"):
            if (self.root / name).exists():
                shutil.copyfile(self.root / name, target / name)

    def _copy_directory(self, inode: int, target: Path, places: dict[int, Path]) -> None:
        target.mkdir(parents=True)
        for name, child in self.names.get(inode, {}).items():
            if child in self.directories:
                self._copy_directory(child, target / name, places)
            elif name.startswith("ledger") or name == "lock":
                continue
            elif child in places:
                (target / name).hardlink_to(places[child])
            else:
                (target / name).write_bytes(self.contents.get(child, b""))
                (target / name).chmod(0o444)
                places[child] = target / name

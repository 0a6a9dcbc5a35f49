"""Builds the library that makes a process's disk and clock fail, and gives it its orders while the process runs."""

from __future__ import annotations

import functools
import mmap
import struct
import subprocess
import tempfile
from enum import IntEnum, IntFlag
from pathlib import Path

from tests.servers.process import program

SOURCE = Path(__file__).with_name("preload.c")
_LAYOUT = struct.Struct("=4i2iq256s")
_STRUCK = struct.calcsize("=5i")
FOR_EVER = 1 << 30


class Calls(IntFlag):
    """Classes of calls on files; the numbers are the library's."""

    WRITE = 1
    SYNC = 2
    NAME = 4
    READ = 8
    OPEN = 16
    CHANGE = WRITE | SYNC | NAME


class What(IntEnum):
    """What happens to a call that is struck; the numbers are the library's."""

    NOTHING = 0
    KILL = 1
    FAIL = 2
    PAUSE = 3
    SHORTEN = 4


@functools.cache
def library() -> Path:
    """The library, built once for each process of tests."""
    out = Path(tempfile.mkdtemp(prefix="faults-")) / "preload.so"
    subprocess.run(
        [program("gcc"), "-shared", "-fPIC", "-O1", "-o", out, SOURCE, "-ldl"], check=True
    )
    return out


class Orders:
    """The orders of one process, in a file that it maps. `root`: the files that they are about."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self._root = path, str(root).encode()
        path.write_bytes(bytes(_LAYOUT.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.give(What.NOTHING)

    def give(
        self,
        what: What,
        code: int = 0,
        *,
        on: Calls = Calls.CHANGE,
        after: int = 0,
        times: int = 1,
        clock: float = 0.0,
    ) -> None:
        """Strike `times` calls of these classes, after so many others; `code`: an errno, or microseconds of a pause.

        `clock`: seconds by which the time of day is off.
        """
        nanoseconds = int(clock * 1e9)
        self._map[:] = _LAYOUT.pack(
            What.NOTHING, code, on, times, after + 1, 0, nanoseconds, self._root
        )
        # Last: the process looks at it while it is written.
        self._map[:4] = struct.pack("=i", what)

    def struck(self) -> int:
        """How many calls were struck since the last order."""
        return int(struct.unpack_from("=i", self._map, _STRUCK)[0])

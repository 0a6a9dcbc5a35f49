"""A program for a test: parses one hostile document and prints by how many bytes the process grew at most.

python -m tests.modelimage.hostile_documents KIND BYTES
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from modelimage.errors import InvalidImage
from modelimage.record import Record
from tests.modelimage.test_record import small_record


def lists(size: int) -> str:
    return ",".join(["[]"] * (size // 3))


def objects(size: int) -> str:
    return ",".join(["{}"] * (size // 3))


def numbers(size: int) -> str:
    return ",".join(f"{i % 89 + 10}.5" for i in range(size // 5))


def names(size: int) -> str:
    return ",".join(f'{{"{i}":1}}' for i in range(size // 12))


def chunks(size: int) -> str:
    return ",".join(f'"{i:064x}"' for i in range(size // 67))


KINDS: Final[Mapping[str, Callable[[int], str]]] = {
    each.__name__: each for each in (lists, objects, numbers, names, chunks)
}


def peak() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", text)[1]) << 10  # type: ignore[index]


def main(kind: str, size: int) -> None:
    document: dict[str, Any] = json.loads(small_record().to_bytes())
    document["extra"] = {"x": "here"}
    text = json.dumps(document, separators=(",", ":"), sort_keys=True)
    data = text.replace('"here"', f"[{KINDS[kind](size)}]").encode()
    if kind == "chunks":
        document["extra"] = {}
        document["files"][0]["chunks"] = "here"
        text = json.dumps(document, separators=(",", ":"), sort_keys=True)
        data = text.replace('"here"', f"[{KINDS[kind](size)}]").encode()
    del document, text
    # The peak so far is that of making it.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    try:
        Record.parse(data)
    except InvalidImage as error:
        print(str(error)[:100], file=sys.stderr)
    print(peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

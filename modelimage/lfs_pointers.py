"""The pointers of Git LFS, which a clone without git-lfs holds in place of files: recognizes and writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint

# The specification limits pointers to 1024 bytes (git-lfs/docs/spec.md).
MAX_BYTES: Final = 1024
_FIRST_LINE = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/")


def pointer(digest: Digest, size: int) -> bytes:
    """The pointer to a file of `size` bytes. Law: `is_pointer(pointer(d, n))`."""
    text = f"version https://git-lfs.github.com/spec/v1\noid {digest}\nsize {size}\n"
    return text.encode()


def is_pointer(data: bytes) -> bool:
    """Whether these are the bytes of a pointer."""
    return len(data) <= MAX_BYTES and _FIRST_LINE.match(data) is not None


def check_no_pointer(location: Path, size: int, *, name: str) -> None:
    """Raise InvalidCheckpoint if a file of `size` bytes is a pointer; `name` is for the message."""
    if size > MAX_BYTES:
        return
    with reading(location), location.open("rb") as file:
        refuse_pointer(file.read(MAX_BYTES + 1), name=name)


def refuse_pointer(data: bytes, *, name: str) -> None:
    """Raise InvalidCheckpoint if these are the bytes of a pointer."""
    if is_pointer(data):
        raise InvalidCheckpoint(
            f"{name} is a Git LFS pointer: the file itself was never downloaded",
            hint="Run `git lfs pull` where the checkpoint was cloned, or build from hf://ORG/NAME.",
        )

"""What the Hub knows of a repository's files: git and LFS identities, listings, and ranges of bytes. No HTTP."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth"})
LFS_BYTES = 10_000_000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


@dataclass(frozen=True)
class HubFile:
    path: str
    source: Path
    size: int
    blob_id: str  # git's object id
    sha256: str | None  # of LFS files only

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id

    def pointer(self) -> bytes:
        """What git has in place of an LFS file (git-lfs/docs/spec.md); empty for others."""
        first = "version https://git-lfs.github.com/spec/v1"
        text = f"{first}\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode() if self.sha256 else b""

    def described(self) -> dict[str, object]:
        """As the tree and paths-info views have it."""
        common = {"type": "file", "path": self.path, "size": self.size, "oid": self.blob_id}
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer())}
        return {**common, "lfs": lfs} if self.sha256 else common

    def sibling(self, *, blobs: bool) -> dict[str, object]:
        """As model_info has it."""
        if not blobs:
            return {"rfilename": self.path}
        lfs = {"sha256": self.sha256, "size": self.size, "pointerSize": len(self.pointer())}
        known = {"rfilename": self.path, "size": self.size, "blobId": self.blob_id}
        return {**known, "lfs": lfs} if self.sha256 else known


def walk(directory: Path) -> tuple[list[str], list[Path]]:
    """The names and places of the files under `directory`, sorted."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [path.relative_to(directory).as_posix() for path in paths], paths


def describe(path: str, source: Path) -> HubFile:
    """Read a file once for its identities."""
    size = source.stat().st_size
    is_lfs = source.suffix in LFS_SUFFIXES or size > LFS_BYTES
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest() if is_lfs else None
    known = HubFile(path, source, size, "", sha256)
    blob = known.pointer() or source.read_bytes()
    blob_id = hashlib.sha1(b"blob %d\0" % len(blob) + blob, usedforsecurity=False).hexdigest()
    return replace(known, blob_id=blob_id)


def tree_entries(
    files: Mapping[str, HubFile], under: str, *, recursive: bool
) -> Iterator[dict[str, object]]:
    """The folders and files that a listing of the folder `under` has, in order."""
    prefix = f"{under}/" if under else ""
    folders: set[str] = set()
    for path, file in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                oid = hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
                yield {"type": "directory", "path": folder, "size": 0, "oid": oid}
        if recursive or len(parts) == 1:
            yield file.described()


def parse_range(header: str | None, size: int) -> range | None:
    """The bytes asked for; all of them without a header, None when the range can't be satisfied."""
    if header is None:
        return range(size)
    match = _RANGE.fullmatch(header)
    if match is None:
        return range(size)
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    stop = min(int(last) + 1, size) if last else size
    return range(int(first), stop) if int(first) < stop else None

"""The files of a Hub repository at one commit, and their JSON in the Hub's API. Pure.

A listing comes from the Hub itself, or is made from a record whose stated source an operator trusts. Git LFS files are
identified by sha256, as in the store; other files by git's object id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from modelimage import canonical, lfs_pointers
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.hub import HubSnapshot
from modelimage.path_rules import check_path, parents
from modelimage.record import Record, RecordFile

LISTING_TYPE: Final = "application/vnd.weightyard.hub.listing.v1+json"
DESCRIPTION_TYPE: Final = "application/vnd.weightyard.hub.description.v1+json"
_MAX_SIZE: Final = 1 << 50
# Members of a description that aren't kept: those that are made of the listing, and what concerns one caller.
_NOT_DESCRIBED: Final = frozenset({"siblings", "sha", "resourceGroup"})
# Those that change by themselves.
_COUNTERS: Final = frozenset(
    {"downloads", "downloadsAllTime", "likes", "trendingScore", "spaces", "usedStorage"}
)
# As the Hub's `.gitattributes` has it for models, and its limit for other files.
_LFS_SUFFIXES: Final = (
    ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".msgpack", ".model", ".tflite", ".npz",
    ".npy", ".pickle", ".pkl", ".parquet", ".arrow", ".tar", ".zip", ".gz", ".zst", ".xz", ".bz2",
)  # fmt: skip
_LFS_BYTES: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file: `oid` is git's object id; `sha256` is known only for LFS files."""

    path: str
    size: int
    oid: str
    sha256: Digest | None

    @property
    def etag(self) -> str:
        """The ETag that the Hub gives the file: its sha256, or else git's object id."""
        return self.sha256.hex if self.sha256 else self.oid

    def entry(self) -> dict[str, Any]:
        """Its JSON in the tree and paths-info views."""
        common = {"type": "file", "path": self.path, "size": self.size, "oid": self.oid}
        return {**common, "lfs": self._lfs("oid")} if self.sha256 else common

    def sibling(self, *, blobs: bool) -> dict[str, Any]:
        """Its JSON among the `siblings` of the model's info."""
        if not blobs:
            return {"rfilename": self.path}
        known = {"rfilename": self.path, "size": self.size, "blobId": self.oid}
        return {**known, "lfs": self._lfs("sha256")} if self.sha256 else known

    @property
    def pointer(self) -> bytes:
        """What git has in place of an LFS file; empty for others."""
        return lfs_pointers.pointer(self.sha256, self.size) if self.sha256 else b""

    def _lfs(self, name: str) -> dict[str, Any]:
        oid = self.sha256.hex if self.sha256 else ""
        return {name: oid, "size": self.size, "pointerSize": len(self.pointer)}


@dataclass(frozen=True, slots=True)
class RepoFiles:
    """All files of a repository at a commit, by path. Law: `RepoFiles.parse(x.to_bytes()) == x`.

    `description` is what the model's info has beside them. It changes while the commit doesn't, so it isn't part of the
    listing's identity and bytes.
    """

    repo: str
    commit: str
    files: Mapping[str, HubFile]
    description: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_tree(cls, repo: str, commit: str, entries: Sequence[Any]) -> RepoFiles:
        """A listing from the Hub's recursive tree. Raises InvalidImage."""
        try:
            files = [_file(each) for each in entries if each["type"] == "file"]
        except (KeyError, TypeError, ValueError, WeightyardError) as error:
            raise InvalidImage(f"malformed listing of {repo}: {error!r}") from error
        return cls(repo, commit, {file.path: file for file in files})

    @classmethod
    def from_record(
        cls, record: Record, oid_of: Callable[[Digest], str | None] = lambda _: None
    ) -> RepoFiles | None:
        """A listing from a record of unchanged Hub files; None for any other record.

        `oid_of` gives git's object id of a small stored file.
        """
        repo = source_repo(record)
        if repo is None:
            return None
        files = [_recorded(file, oid_of) for file in record.files]
        return cls(repo, record.revision, {file.path: file for file in files})

    def to_bytes(self) -> bytes:
        entries = [file.entry() for file in self.files.values()]
        return canonical.to_bytes({"repo": self.repo, "commit": self.commit, "entries": entries})

    @classmethod
    def parse(cls, data: bytes) -> RepoFiles:
        """Parse what `to_bytes` wrote. Raises InvalidImage."""
        document = canonical.parse(data, what="a listing", most=canonical.MOST_OF_FILES)
        try:
            repo, commit = str(document["repo"]), str(document["commit"])
            return cls.from_tree(repo, commit, document["entries"])
        except KeyError as error:
            raise InvalidImage(f"malformed listing: {error!r}") from error

    def info(self, *, blobs: bool, expand: Sequence[str] = ()) -> dict[str, Any]:
        """The JSON of `/api/models/<repo>`; with `expand` the identity and these members only."""
        siblings = [file.sibling(blobs=blobs) for file in self.files.values()]
        # Clients of 2024 fail without the numbers.
        defaults = {
            "_id": self.commit[:24], "id": self.repo, "modelId": self.repo, "private": False, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [],
        }  # fmt: skip
        whole = {**defaults, **self.description, "sha": self.commit, "siblings": siblings}
        return {
            name: value
            for name, value in whole.items()
            if not expand or name in ("_id", "id", *expand)
        }

    def entries_of(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        """The JSON of `/paths-info/`: files and directories; paths that aren't there are left out."""
        directories = {each for path in self.files for each in parents(path)}
        found: list[dict[str, Any]] = []
        for path in dict.fromkeys(each.strip("/") for each in paths):
            if file := self.files.get(path):
                found.append(file.entry())
            elif path in directories:
                found.append(_directory(path))
        return found

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]] | None:
        """The JSON of `/tree/`; None when there is nothing below `under`."""
        found = list(self._entries(under, recursive=recursive))
        return found if found or not under else None

    def _entries(self, under: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
        # As the Hub answers: each directory once, before its files; without `recursive` only direct children. A listing
        # keeps files only, so directories are derived from their paths.
        seen: set[str] = set()
        depth = under.count("/") + 1 if under else 0
        for path, file in sorted(self.files.items()):
            if under and not path.startswith(under + "/"):
                continue
            for parent in parents(path)[depth:]:
                if parent not in seen and (recursive or parent.count("/") == depth):
                    seen.add(parent)
                    yield _directory(parent)
            if recursive or path.count("/") == depth:
                yield file.entry()


def source_repo(record: Record) -> str | None:
    """The Hub repository that a record names as its source; None if its files were changed or its commit is unknown."""
    found = HubSnapshot.of(record)
    return found.repository if found is not None and not record.quantization else None


def git_oid(data: bytes) -> str:
    """The object id that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def described(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub's info of a model says beside its files."""
    return {name: value for name, value in document.items() if name not in _NOT_DESCRIBED}


def lasting(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without what changes by itself, such as the number of downloads."""
    return {name: value for name, value in description.items() if name not in _COUNTERS}


def _directory(path: str) -> dict[str, Any]:
    # Its id is made up, because a listing keeps none of directories.
    oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _recorded(file: RecordFile, oid_of: Callable[[Digest], str | None]) -> HubFile:
    small = file.size <= _LFS_BYTES and not file.path.lower().endswith(_LFS_SUFFIXES)
    oid = oid_of(file.digest) if small else None
    if oid is not None:
        return HubFile(file.path, file.size, oid, None)
    pointer = lfs_pointers.pointer(file.digest, file.size)
    return HubFile(file.path, file.size, git_oid(pointer), file.digest)


def _file(entry: Mapping[str, Any]) -> HubFile:
    lfs = entry.get("lfs")
    size = entry["size"]
    # `type`: JSON's true would count as 1, and 1e400 is infinity.
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise ValueError(f"size {str(size)[:40]}")
    sha256 = Digest(str(lfs["oid"])) if lfs else None
    return HubFile(check_path(str(entry["path"])), size, str(entry["oid"]), sha256)

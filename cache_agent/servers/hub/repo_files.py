"""The files of a Hub repository at one commit, and their JSON in the Hub's API. Pure.

A listing comes from the Hub itself, or is made from a record whose stated source an operator trusts. Git LFS files are
identified by sha256, as in the store; other files by git's object id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.hub import HubSnapshot
from modelimage.path_rules import check_path, parents
from modelimage.record import Record

LISTING_TYPE = "application/vnd.weightyard.hub.listing.v1+json"
_POINTER_BYTES = 135
_MAX_SIZE = 1 << 50


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

    def _lfs(self, name: str) -> dict[str, Any]:
        oid = self.sha256.hex if self.sha256 else ""
        return {name: oid, "size": self.size, "pointerSize": _POINTER_BYTES}


@dataclass(frozen=True, slots=True)
class RepoFiles:
    """All files of a repository at a commit, by path. Law: `Listing.parse(x.to_bytes()) == x`."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]

    @classmethod
    def from_tree(cls, repo: str, commit: str, entries: Sequence[Any]) -> RepoFiles:
        """A listing from the Hub's recursive tree. Raises InvalidImage."""
        try:
            files = [_file(each) for each in entries if each["type"] == "file"]
        except (KeyError, TypeError, ValueError, WeightyardError) as error:
            raise InvalidImage(f"malformed listing of {repo}: {error!r}") from error
        return cls(repo, commit, {file.path: file for file in files})

    @classmethod
    def from_record(cls, record: Record) -> RepoFiles | None:
        """A listing from a record of unchanged Hub files; None for any other record."""
        repo = source_repo(record)
        if repo is None:
            return None
        files = [
            # A record has no git object ids, but the API needs 40 digits: part of the sha256 stands in.
            HubFile(file.path, file.size, file.digest.hex[:40], file.digest)
            for file in record.files
        ]
        return cls(repo, record.revision, {file.path: file for file in files})

    def to_bytes(self) -> bytes:
        entries = [file.entry() for file in self.files.values()]
        return canonical.to_bytes({"repo": self.repo, "commit": self.commit, "entries": entries})

    @classmethod
    def parse(cls, data: bytes) -> RepoFiles:
        """Parse what `to_bytes` wrote. Raises InvalidImage."""
        document = canonical.parse(data, what="a listing")
        try:
            repo, commit = str(document["repo"]), str(document["commit"])
            return cls.from_tree(repo, commit, document["entries"])
        except KeyError as error:
            raise InvalidImage(f"malformed listing: {error!r}") from error

    def info(self, *, blobs: bool) -> dict[str, Any]:
        """The JSON of `/api/models/<repo>`."""
        return {
            "_id": self.commit[:24],
            "id": self.repo,
            "modelId": self.repo,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": [file.sibling(blobs=blobs) for file in self.files.values()],
        }

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
                    yield {"type": "directory", "path": parent, "size": 0, "oid": _tree_oid(parent)}
            if recursive or path.count("/") == depth:
                yield file.entry()


def source_repo(record: Record) -> str | None:
    """The Hub repository that a record names as its source; None if its files were changed or its commit is unknown."""
    found = HubSnapshot.of(record)
    return found.repository if found is not None and not record.quantization else None


def git_oid(data: bytes) -> str:
    """The object id that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _tree_oid(path: str) -> str:
    # Made up, because a listing keeps no ids of directories.
    return hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()


def _file(entry: Mapping[str, Any]) -> HubFile:
    lfs = entry.get("lfs")
    size = entry["size"]
    # `type`: JSON's true would count as 1, and 1e400 is infinity.
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise ValueError(f"size {str(size)[:40]}")
    sha256 = Digest(str(lfs["oid"])) if lfs else None
    return HubFile(check_path(str(entry["path"])), size, str(entry["oid"]), sha256)

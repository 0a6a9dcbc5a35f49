"""Parses the Hub URLs that model downloads use. Pure.

A revision with slashes, such as `refs/pr/1`, may be escaped or not. Where a path follows, only the Hub's own refs are
taken unescaped: of a branch `a/b` nobody could say where its name ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote

from modelimage.errors import InvalidImage, InvalidInput
from modelimage.path_rules import check_path

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
# These begin the addresses of what isn't a model.
_REPO = rf"(?P<repo>(?!(?:api|datasets|spaces|kernels|buckets)/){_PART}(?:/{_PART})?)"
_FIRST = r"(?P<revision>refs(?:/|%2[Ff])(?:pr|convert)(?:/|%2[Ff])[^/]+|[^/]+)"
_INFO = re.compile(rf"/api/models/{_REPO}(?:/revision/(?P<revision>.+))?")
_PATHS = re.compile(rf"/api/models/{_REPO}/paths-info/(?P<revision>.+)")
_TREE = re.compile(rf"/api/models/{_REPO}/tree/{_FIRST}(?:/(?P<path>.*))?")
_FILE = re.compile(rf"/{_REPO}/(?P<view>resolve|raw)/{_FIRST}/(?P<path>.+)")
_OTHER_KINDS = re.compile(r"/(?:api/)?(?P<kind>datasets|spaces|kernels|buckets)(?:/.*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
DEFAULT_REVISION = "main"


class NoName(InvalidInput):
    """What nothing here can be called. `code`: the Hub's, by which clients tell what is missing."""

    def __init__(self, message: str, code: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class NoModel(NoName):
    """The address is one of a repository that isn't a model, such as a dataset."""


class RepoRequest(Enum):
    """The kinds of request for a repository. RAW is a file as git has it: of weights, the LFS pointer."""

    INFO = "info"
    TREE = "tree"
    PATHS = "paths-info"
    FILE = "resolve"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A request for one revision of one repository. `path` is a file, or the directory of a tree request."""

    view: RepoRequest
    repo: str
    revision: str
    path: str = ""


def parse_hub_address(raw_path: str) -> HubAddress:
    """Parse a request's path, still percent-encoded. Raises InvalidInput: NoModel, NoName."""
    if match := _OTHER_KINDS.fullmatch(raw_path):
        raise NoModel(
            f"this Hub endpoint serves models only, no {match['kind']}",
            "RepoNotFound",
            hint="Set HF_ENDPOINT only for programs that download models.",
        )
    if match := _FILE.fullmatch(raw_path):
        view, path = RepoRequest(match["view"]), _path(match["path"])
    elif match := _TREE.fullmatch(raw_path):
        view, path = RepoRequest.TREE, _path(match["path"]) if match["path"] else ""
    elif match := _PATHS.fullmatch(raw_path):
        view, path = RepoRequest.PATHS, ""
    elif match := _INFO.fullmatch(raw_path):
        view, path = RepoRequest.INFO, ""
    else:
        raise InvalidInput("not an address of this endpoint: it serves downloads of models only")
    return HubAddress(view, match["repo"], _revision(match["revision"]), path)


def _revision(text: str | None) -> str:
    revision = unquote(text) if text else DEFAULT_REVISION
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise NoName(f"not a revision: {revision[:200]!r}", "RevisionNotFound")
    return revision


def _path(text: str) -> str:
    try:
        return check_path(unquote(text).strip("/"))
    except InvalidImage as error:
        raise NoName(error.message, "EntryNotFound") from error

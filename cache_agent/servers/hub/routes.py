"""Parses the Hub URLs that model downloads use. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote

from modelimage.errors import InvalidImage, InvalidInput
from modelimage.path_rules import check_path

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = rf"(?P<repo>{_PART}(?:/{_PART})?)"
_API = re.compile(
    rf"/api/models/{_REPO}(?:/(?P<view>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
_RESOLVE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
DEFAULT_REVISION = "main"


class RepoRequest(Enum):
    """The kinds of request for a repository."""

    INFO = "info"
    TREE = "tree"
    PATHS = "paths-info"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A request for one revision of one repository. `path` is a file, or the directory of a tree request."""

    view: RepoRequest
    repo: str
    revision: str
    path: str = ""


def parse_hub_address(raw_path: str) -> HubAddress:
    """Parse a request's path, still percent-encoded. Raises InvalidInput."""
    if match := _API.fullmatch(raw_path):
        view = (
            RepoRequest.INFO if match["view"] in (None, "revision") else RepoRequest(match["view"])
        )
        path = _path(match["path"]) if match["path"] and view is RepoRequest.TREE else ""
        return HubAddress(view, match["repo"], _revision(match["revision"]), path)
    if match := _RESOLVE.fullmatch(raw_path):
        return HubAddress(
            RepoRequest.FILE, match["repo"], _revision(match["revision"]), _path(match["path"])
        )
    raise InvalidInput("not an address of this endpoint: it serves models only")


def _revision(text: str | None) -> str:
    revision = unquote(text) if text else DEFAULT_REVISION
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InvalidInput(f"not a revision: {revision[:200]!r}")
    return revision


def _path(text: str) -> str:
    try:
        return check_path(unquote(text).strip("/"))
    except InvalidImage as error:
        raise InvalidInput(error.message) from error

"""The Hugging Face Hub's addresses and answers: the only module that knows how they are written.

Pure: no network. `builder` lists and fetches checkpoints with huggingface-hub, `cache_agent` reads single files at a
commit; both name repositories, files and errors as here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.record import Record
from modelimage.source_uris import HUB

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
# The variables of huggingface-hub.
ENDPOINT_VARIABLE: Final = "HF_ENDPOINT"
# The second is the older spelling.
_TOKEN_VARIABLES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SIGN_IN: Final = "Set HF_TOKEN or run `hf auth login`."
# A commit or a variant: one part of a path.
_PART: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
# At most 96 characters for each part, as huggingface-hub has it.
_NAME = re.compile(r"[\w][\w.-]{0,95}(?:/[\w][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubReference:
    """`hf://org/name[@revision]`; the revision is a branch, a tag or a commit. Law: `parse_hub(str(r)) == r`."""

    name: str
    revision: str | None = None

    @property
    def uri(self) -> str:
        """The repository without a revision, as a record's source names it."""
        return repository_uri(self.name)

    def __str__(self) -> str:
        return self.uri + (f"@{self.revision}" if self.revision else "")


def endpoint(environment: Mapping[str, str], default: str = DEFAULT_ENDPOINT) -> str:
    """The Hub's URL without a slash at its end, as huggingface-hub reads it: HF_ENDPOINT, else `default`."""
    return (environment.get(ENDPOINT_VARIABLE, "").strip() or default).rstrip("/")


def token(environment: Mapping[str, str]) -> str | None:
    """The token in the environment, without the white space that files of Secrets end with; None if there is none."""
    stated = (environment.get(name, "").strip() for name in _TOKEN_VARIABLES)
    return next(filter(None, stated), None)


def parse_hub(text: str) -> HubReference:
    """Parse a reference given by a user. Raises InvalidInput."""
    name, at, revision = text.removeprefix(HUB).partition("@")
    if not _NAME.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
        raise InvalidInput(
            f"not a model on the Hub: {text[:200]!r}",
            hint="Write hf://ORG/NAME or hf://ORG/NAME@REVISION.",
        )
    return HubReference(name, revision or None)


def repository_uri(name: str) -> str:
    """The URI of a repository `org/name`, or `org/name@revision`."""
    return f"{HUB}{name}"


def hub_repository(source: str) -> str | None:
    """The repository that a record names as its source; None for a source elsewhere, and for no valid name."""
    if not source.startswith(HUB):
        return None
    name = source.removeprefix(HUB).split("@", maxsplit=1)[0]
    # Two dots in a row are in no name on the Hub, and could lead out of a directory.
    return name if _NAME.fullmatch(name) and ".." not in name else None


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """A repository at a commit, as a record's text names them: safe as parts of a path and of a URL.

    `variant` is empty for files as published. Every path made of such text is made of this.
    """

    repository: str
    commit: str
    variant: str = ""

    @classmethod
    def of(cls, record: Record) -> HubSnapshot | None:
        """The snapshot that a record names; None for a source elsewhere, and for text that isn't a name."""
        repository, variant = hub_repository(record.source), record.variant
        changed = bool(record.quantization)
        if repository is None or not _is_name(record.revision):
            return None
        if changed and not _is_name(variant):
            return None
        return cls(repository, record.revision, variant if changed else "")

    @property
    def directory(self) -> str:
        """The name of the repository's directory in a cache of huggingface_hub."""
        return f"models--{self.repository.replace('/', '--')}"

    @property
    def revision(self) -> str:
        """The name of the snapshot's directory there."""
        return f"{self.commit}-{self.variant}" if self.variant else self.commit


def _is_name(text: str) -> bool:
    return _PART.fullmatch(text) is not None and ".." not in text


def file_url(endpoint: str, repository: str, revision: str, path: str) -> str:
    """The URL of a file's bytes, which may redirect to a storage host."""
    # `safe=""`: a revision with a slash must stay one path segment.
    return f"{endpoint.rstrip('/')}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"


def refusal(what: str, status: int, retry_after: float | None = None) -> WeightyardError:
    """The error of an unsuccessful status for `what`; `retry_after` in seconds, if the Hub states it."""
    if status in (401, 403):
        return AccessDenied(f"the Hub refuses {what} ({status})", hint=SIGN_IN)
    if status == 404:
        return NotFound(
            f"{what} isn't on the Hub, or this token can't see it",
            hint=f"Check the name and the revision. For a private repository: {SIGN_IN}",
        )
    if status in (429, 503):
        return RateLimited(
            f"the Hub limits the request rate for {what} ({status})",
            hint="Try again later; a token (HF_TOKEN) has a higher limit.",
            retry_after=retry_after,
        )
    if status >= 500:
        return Unreachable(f"the Hub failed at {what} ({status})", hint="Try again later.")
    return RemoteRefused(f"the Hub answered {status} for {what}")

"""A checkpoint on the Hugging Face Hub, or on a server with its API at HF_ENDPOINT.

The revision is resolved to a commit first and all files are fetched from it, so a build can't mix two commits.
huggingface-hub downloads the files into its own cache, which other programs share, and finds the tokens. All of its
exceptions are mapped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its client's base, whichever that is
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented
from huggingface_hub.utils.tqdm import tqdm

from builder.sources.httpfile import HttpFile
from builder.sources.interface import Advance, Listing, RemoteFile, SourceFile
from modelimage.digest import Digest
from modelimage.durable import write_error
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.hub import SIGN_IN, HubReference, refusal
from modelimage.registry.connections import Connections
from modelimage.registry.retry import parse_retry_after
from modelimage.source_uris import is_commit
from modelimage.stage_workers import run_all

_ASKED_AT_ONCE: Final = 8
# The ETag of an LFS file; those of others are git's.
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Subclasses first: in huggingface-hub a gated repository is a subclass of one that wasn't found.
_CAUSES: tuple[tuple[type[Exception], type[WeightyardError], str, str], ...] = (
    (
        GatedRepoError,
        AccessDenied,
        " is gated, and this token has no access to it",
        f"Accept its terms on the Hub. {SIGN_IN}",
    ),
    (
        RevisionNotFoundError,
        NotFound,
        ": no such revision",
        "Name a branch, a tag or a commit.",
    ),
    (
        RepositoryNotFoundError,
        NotFound,
        ": no such repository, or it is private and this token can't see it",
        f"Check the name. For a private one: {SIGN_IN}",
    ),
    (EntryNotFoundError, NotFound, ": no such file at this commit", "Check the revision."),
)


class HubModelSource:
    """A ModelSource for one Hub repository. Connects on the first call."""

    def __init__(
        self, reference: HubReference, *, endpoint: str | None = None, cache: Path | None = None
    ) -> None:
        self._reference = reference
        self._endpoint = endpoint
        self._cache = cache
        self._commit = ""
        self._connections = Connections()

    @property
    def name(self) -> str:
        return self.uri

    @property
    def uri(self) -> str:
        return self._reference.uri

    @property
    def revision(self) -> str:
        return self._commit

    @property
    def is_local(self) -> bool:
        return False

    def list(self) -> Listing:
        """List the files; with HF_HUB_OFFLINE, those of the revision that the Hugging Face cache holds."""
        if is_offline_mode():
            return self._cached()
        with mapped_errors(self._reference):
            info = HfApi(endpoint=self._endpoint).model_info(
                self._reference.name, revision=self._reference.revision, files_metadata=True
            )
        commit = info.sha or ""
        # A complete commit hash: with a branch name, one build could mix two commits.
        if not is_commit(commit):
            raise RemoteRefused(f"the Hub names no commit for {self._reference}: {commit!r:.60}")
        self._commit = commit
        files = run_all(
            info.siblings or (),
            lambda each, _: self._source_file(each),
            advance=lambda _: None,
            workers=_ASKED_AT_ONCE,
        )
        return Listing(tuple(sorted(files)))

    def _cached(self) -> Listing:
        name, revision = self._reference.name, self._reference.revision
        with mapped_errors(self._reference):
            found = snapshot_download(
                name, revision=revision, cache_dir=self._cache, local_files_only=True
            )
            folder = Path(found)
            self._commit = folder.name
            files = [_cached_file(folder, path) for path in folder.rglob("*") if path.is_file()]
        return Listing(tuple(sorted(files)))

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        with mapped_errors(self._reference, file.path):
            path = hf_hub_download(
                self._reference.name,
                file.path,
                revision=self._commit,
                endpoint=self._endpoint,
                cache_dir=self._cache,
                tqdm_class=_bar(advance),
            )
        return Path(path)

    def remote(self, file: SourceFile) -> RemoteFile | None:
        """Stream from the Hub's resolve URL at the pinned commit; None if the Hugging Face cache has the file."""
        name, commit = self._reference.name, self._commit
        with mapped_errors(self._reference, file.path):
            cached = try_to_load_from_cache(name, file.path, self._cache, commit)
            url = hf_hub_url(name, file.path, revision=commit, endpoint=self._endpoint)
        # Reading a cached file from disk is cheaper than downloading it again.
        if isinstance(cached, str):
            return None
        with mapped_errors(self._reference, file.path):
            # The library's own rules for the token: HF_HUB_DISABLE_IMPLICIT_TOKEN keeps it here.
            said = build_hf_headers()
        headers = {"Authorization": said["authorization"]} if "authorization" in said else {}
        reading = HttpFile(url, file.size, self._connections, headers)
        return RemoteFile(f"{self.uri}@{commit}/{file.path}", reading.read)

    def _source_file(self, sibling: Any) -> SourceFile:
        path, size = sibling.rfilename, sibling.size
        claimed = Digest(sibling.lfs.sha256) if sibling.lfs else None
        # Mirrors may list names only; then the file itself states its size, and an LFS file its sha256.
        if type(size) is not int:
            with mapped_errors(self._reference, path):
                url = hf_hub_url(
                    self._reference.name, path, revision=self._commit, endpoint=self._endpoint
                )
                stated = get_hf_file_metadata(url, endpoint=self._endpoint)
            size, etag = stated.size, stated.etag or ""
            claimed = Digest(etag) if _SHA256.fullmatch(etag) else None
        # Without sizes, completeness couldn't be checked.
        if type(size) is not int:
            raise RemoteRefused(f"the Hub doesn't say how large {path!r} is")
        return SourceFile(path, size, claimed)


def _cached_file(folder: Path, path: Path) -> SourceFile:
    # The cache names the bytes of an LFS file by their sha256.
    blob = path.resolve().name
    claimed = Digest(blob) if _SHA256.fullmatch(blob) else None
    return SourceFile(path.relative_to(folder).as_posix(), path.stat().st_size, claimed)


def _bar(advance: Advance) -> type[tqdm]:
    """A progress bar class that draws nothing: huggingface-hub reports progress only to such classes."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

    return Bar


@contextmanager
def mapped_errors(reference: object, path: str = "") -> Iterator[None]:
    """Map the library's exceptions to ours. The message names the repository, by its `str`, and the file."""
    what = f"{path!r} of {reference}" if path else str(reference)
    try:
        yield
    except HFValidationError as error:
        raise InvalidInput(f"not a name on the Hub: {reference}") from error
    except HfHubHTTPError as error:
        raise _http_error(what, error) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, ConnectionError) as error:
        raise _unreachable(what, error) from error
    except OSError as error:
        # Any other OSError is from the cache's disk.
        raise write_error(Path(error.filename or "the Hugging Face cache"), error) from error


def _http_error(what: str, error: HfHubHTTPError) -> WeightyardError:
    status = error.response.status_code
    for cause, ours, text, hint in _CAUSES:
        if isinstance(error, cause):
            return ours(f"{what}{text}", hint=hint)
    after = parse_retry_after(error.response.headers.get("Retry-After"), datetime.now(UTC))
    return refusal(what, status, after)


def _unreachable(what: str, error: Exception) -> Unreachable:
    cause = error.__cause__ or error
    reason = str(cause).split("\n", 1)[0] or type(cause).__name__
    return Unreachable(
        f"the Hub can't be reached for {what}: {reason[:200]}",
        hint="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE.",
    )

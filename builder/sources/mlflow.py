"""A model in MLflow (needs the extra `mlflow`): a registered version, a logged model, or the artifacts of a run.

MLflow states the location of the files. Directories and buckets are read by their own sources, with
range reads and resume; other locations (MLflow's artifact server, Azure) are read through MLflow, file by file.
All of MLflow's exceptions are mapped here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import requests
from mlflow import MlflowClient, get_registry_uri, get_tracking_uri
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from builder.sources.interface import Advance, Listing, ModelSource, RemoteFile, SourceFile
from builder.sources.local import LocalSource
from modelimage import canonical
from modelimage.durable import make_directories, writing
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.source_uris import MLFLOW

# MLflow would draw its progress bars over ours; only this variable turns them off.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

SCHEME: Final = f"{MLFLOW}models:/"
RUNS: Final = f"{MLFLOW}runs:/"
RUN_FACT: Final = "mlflowRun"  # in records: the run that made the model
_REFERENCE = re.compile(r"([^/@\x00-\x1f]+)(?:/([0-9]{1,18})|@([A-Za-z0-9_.-]{1,255}))")
_LOGGED = re.compile(r"m-[0-9a-f]{32}")
_RUN = re.compile(r"([A-Za-z0-9_-]{1,64})/([^\x00-\x1f]{1,1024})")
_CONFIG: Final = "config.json"
_TRANSFORMERS: Final = "model"
_COMPONENTS: Final = "components"


@dataclass(frozen=True, slots=True)
class MlflowReference:
    """`mlflow:models:/NAME/VERSION`, `mlflow:models:/NAME@ALIAS`, `mlflow:models:/m-ID` or `mlflow:runs:/RUN/PATH`.

    Law: `parse_mlflow(str(r)) == r`. A logged model has neither version nor alias; a run's `name` is the path.
    """

    name: str
    version: str | None = None
    alias: str | None = None
    run: str | None = None

    @property
    def unversioned(self) -> str:
        """The reference without version and alias."""
        return f"{RUNS}{self.run}/{self.name}" if self.run else f"{SCHEME}{self.name}"

    def __str__(self) -> str:
        if self.version:
            return f"{self.unversioned}/{self.version}"
        return f"{self.unversioned}@{self.alias}" if self.alias else self.unversioned


def parse_mlflow(text: str) -> MlflowReference:
    """Parse a reference given by a user. Raises InvalidInput."""
    if text.startswith(SCHEME):
        rest = text.removeprefix(SCHEME)
        if _LOGGED.fullmatch(rest):
            return MlflowReference(rest)
        found = _REFERENCE.fullmatch(rest)
        if found is not None:
            return MlflowReference(found[1], found[2], found[3])
    run = _RUN.fullmatch(text.removeprefix(RUNS)) if text.startswith(RUNS) else None
    if run is not None and ".." not in run[2].split("/"):
        return MlflowReference(run[2].strip("/"), run=run[1])
    raise InvalidInput(
        f"not a model of MLflow: {text[:200]!r}",
        hint="Write mlflow:models:/NAME/VERSION, mlflow:models:/NAME@ALIAS, or mlflow:runs:/RUN/PATH.",
    )


@dataclass(frozen=True, slots=True)
class MlflowSettings:
    """The location of MLflow; unset values are found by MLflow as usual.

    `open_bucket` opens the address of a bucket, and returns None for any other.
    """

    work: Path
    open_bucket: Callable[[str], ModelSource | None]
    tracking_uri: str | None = None
    registry_uri: str | None = None


@dataclass(frozen=True, slots=True)
class _Located:
    """Where a model's files are, and what MLflow says of them; what it doesn't know is empty."""

    address: str
    version: str = ""
    run: str = ""


class MlflowSource:
    """A ModelSource for one model. Connects on the first call."""

    is_local = False

    def __init__(self, reference: MlflowReference, settings: MlflowSettings) -> None:
        self._reference = reference
        self._settings = settings
        self._located = _Located("")
        self._inner: ModelSource | None = None
        self._paths: Mapping[str, SourceFile] = {}

    @property
    def name(self) -> str:
        return self.uri

    @property
    def uri(self) -> str:
        return self._reference.unversioned

    @property
    def revision(self) -> str:
        """The version's number, because an alias may move; empty for a run's or a logged model."""
        return self._located.version

    def list(self) -> Listing:
        if self._inner is None:
            self._inner = self._locate()
        listing = self._inner.list()
        at_source = {file.path: file for file in listing.files}
        chosen = checkpoint_paths(at_source)
        self._paths = {path: at_source[place] for path, place in chosen.items()}
        taken = set(chosen.values())
        left = {path: "MLflow's own" for path in at_source if path not in taken}
        files = (replace(file, path=path) for path, file in self._paths.items())
        run = self._located.run
        origin = {RUN_FACT: run} if run else {}
        return Listing(tuple(sorted(files)), {**listing.ignored, **left}, origin)

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        if self._inner is None:
            self.list()
        place = self._paths.get(file.path)
        if place is None or self._inner is None:
            raise NotFound(f"{file.path!r} is not in {self._reference}")
        return self._inner.fetch(place, advance)

    def remote(self, file: SourceFile) -> RemoteFile | None:
        """Delegate to the source of the version's files: only a bucket supports streaming."""
        place = self._paths.get(file.path)
        return self._inner.remote(place) if self._inner is not None and place is not None else None

    def _locate(self) -> ModelSource:
        given = self._settings
        with _mapped(str(self._reference)):
            client = MlflowClient(given.tracking_uri, given.registry_uri)
            self._located = _located(client, self._reference)
        address = self._located.address
        parts = urlsplit(address)
        bucket = given.open_bucket(address)
        if bucket is not None:
            return bucket
        if parts.scheme in ("", "file"):
            told = (
                given.registry_uri or given.tracking_uri or get_registry_uri(),
                given.tracking_uri or get_tracking_uri(),  # of runs and logged models
            )
            # Who may write to a registry elsewhere must not choose which files of this machine are published.
            if any(urlsplit(each).scheme in ("http", "https") for each in told):
                raise InvalidInput(
                    f"{self._reference} is at {address}, which names files of this machine",
                    hint="Build from the directory itself, or let MLflow serve its artifacts.",
                )
            # File URLs escape special characters.
            return LocalSource(Path(unquote(parts.path)))
        with _mapped(address):
            repository = get_artifact_repository(
                address, tracking_uri=given.tracking_uri, registry_uri=given.registry_uri
            )
        return _ArtifactSource(address, repository, given.work)


def _located(client: MlflowClient, reference: MlflowReference) -> _Located:
    """Asks MLflow for the files of a reference. Raises MLflow's own errors."""
    name = reference.name
    if reference.run is not None:
        return _Located(_run_address(client, reference.run, name), run=reference.run)
    if reference.version is None and reference.alias is None:
        logged = client.get_logged_model(name)
        return _Located(str(logged.artifact_location), run=logged.source_run_id or "")
    # Resolved once: the alias may move during the build.
    if reference.version is None:
        found = client.get_model_version_by_alias(name, str(reference.alias))
    else:
        found = client.get_model_version(name, reference.version)
    version = str(found.version)
    address = str(client.get_model_version_download_uri(name, version))
    return _Located(_resolved(client, address), version, found.run_id or "")


def _resolved(client: MlflowClient, address: str) -> str:
    """Where a version's files are; some registries name a run or a logged model instead."""
    try:
        named = parse_mlflow(f"{MLFLOW}{address}")
    except InvalidInput:
        return address
    # Another version, of which this one is a copy, is followed by MLflow's own client.
    is_other = named.version is not None or named.alias is not None
    return address if is_other else _located(client, named).address


def _run_address(client: MlflowClient, run: str, path: str) -> str:
    """Where a run's model is: since MLflow 3 at a place of its own, before that among the run's artifacts."""
    info = client.get_run(run).info
    first, _, rest = path.partition("/")
    token: str | None = None
    while True:
        page = client.search_logged_models(
            [info.experiment_id], filter_string=f"source_run_id = '{run}'", page_token=token
        )
        for each in page:
            if each.name == first and each.source_run_id == run:
                return f"{str(each.artifact_location).rstrip('/')}/{rest}".rstrip("/")
        token = page.token
        if not token:
            return f"{str(info.artifact_uri).rstrip('/')}/{path}"


class _ArtifactSource:
    """A ModelSource for any location that only MLflow's own client reads."""

    is_local = False
    revision = ""

    def __init__(self, uri: str, repository: Any, work: Path) -> None:
        self.uri = self.name = uri
        self._repository = repository
        self._work = work

    def list(self) -> Listing:
        with _mapped(self.uri):
            found = tuple(sorted(self._walk(None)))
        if not found:
            raise NotFound(f"there is nothing at {self.uri}", hint="Check the model version.")
        return Listing(found)

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        identity = canonical.to_bytes([self.uri, file.path, file.size])
        path = self._work / f"{hashlib.sha256(identity).hexdigest()}{Path(file.path).suffix}"
        if not path.exists():
            self._download(file, path)
        advance(file.size)
        return path

    def remote(self, file: SourceFile) -> None:
        """None: MLflow's client can only fetch whole files."""

    def _download(self, file: SourceFile, path: Path) -> None:
        # Into a directory of its own, then renamed: a file under its final name is always complete.
        with writing(path):
            make_directories(path.parent)
            folder = Path(tempfile.mkdtemp(dir=path.parent))
        try:
            with _mapped(f"{file.path!r} at {self.uri}"):
                got = Path(self._repository.download_artifacts(file.path, dst_path=str(folder)))
            with writing(path):
                size = got.stat().st_size
                if size != file.size:
                    raise Unreachable(
                        f"{file.path!r} ended after {size} of {file.size} bytes", hint="Try again."
                    )
                got.rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _walk(self, folder: str | None) -> Iterator[SourceFile]:
        for entry in self._repository.list_artifacts(folder):
            if entry.is_dir:
                yield from self._walk(entry.path)
            elif entry.file_size is None:
                # Without a size, a truncated download couldn't be detected.
                raise RemoteRefused(f"MLflow doesn't say how large {entry.path!r} is")
            else:
                yield SourceFile(entry.path, int(entry.file_size))


def checkpoint_paths(paths: Iterable[str]) -> dict[str, str]:
    """Map the checkpoint in a model version's files: its path -> the path in MLflow. Pure.

    MLflow's transformers flavour stores the model in `model/` and its tokenizer in `components/tokenizer/`, which
    belong in one directory; a pyfunc stores the checkpoint somewhere below `artifacts/`. Other files keep their paths.
    """
    known = sorted(paths)
    # The version is a plain checkpoint.
    if _CONFIG in known:
        return {path: path for path in known}
    roots = sorted((path for path in known if path.endswith(f"/{_CONFIG}")), key=_depth)
    if f"{_TRANSFORMERS}/{_CONFIG}" in known:
        chosen = _below(known, _TRANSFORMERS)
        for folder in sorted({"/".join(path.split("/")[:2]) for path in known}):
            if folder.startswith(f"{_COMPONENTS}/"):
                # The model's own files win over a component's files of the same name.
                chosen = {**_below(known, folder), **chosen}
        return chosen
    # The one nearest to the root: deeper ones belong to parts of the model.
    if roots:
        return _below(known, roots[0].removesuffix(f"/{_CONFIG}"))
    return {path: path for path in known}


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _below(paths: Iterable[str], folder: str) -> dict[str, str]:
    return {p.removeprefix(f"{folder}/"): p for p in paths if p.startswith(f"{folder}/")}


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise _error(what, int(error.get_http_status_code()), error) from error  # type: ignore[no-untyped-call]
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        raise _error(what, status, error) from error
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise _error(what, 500, error) from error
    # MLflow imports the client of a store (boto3 for S3, say) only when it is used.
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"MLflow lacks a package to read {what}: {error.name}", hint=f"Install {error.name}."
        ) from error


def _error(what: str, status: int, error: Exception) -> WeightyardError:
    reason = str(error).split("\n", 1)[0][:200]
    if status == 404:
        return NotFound(f"{what}: not in MLflow: {reason}", hint="Check the name and the version.")
    if status in (401, 403):
        return AccessDenied(
            f"MLflow refuses {what}: {reason}",
            hint="Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD.",
        )
    if status == 429:
        return RateLimited(f"MLflow limits the request rate for {what}", hint="Try again later.")
    if status >= 500:
        return Unreachable(
            f"MLflow failed at {what}: {reason}", hint="Check the network and MLFLOW_TRACKING_URI."
        )
    return InvalidInput(f"MLflow can't be used for {what}: {reason}", hint="Check the address.")

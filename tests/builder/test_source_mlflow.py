"""MLflow as a source: its own file store, and a server on loopback that speaks the part of its API that is used."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from builder.sources.factory import open_source
from builder.sources.interface import ModelSource, SourceFile
from builder.sources.local import LocalSource
from builder.sources.mlflow import (
    MlflowReference,
    MlflowSettings,
    MlflowSource,
    checkpoint_paths,
    parse_mlflow,
)
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    Unreachable,
    WeightyardError,
)
from tests.servers.httpserver import Handler, LoopbackServer

PLAIN = {"config.json": b"{}", "model.safetensors": b"w" * 3000, "sub/a.txt": b""}
TRANSFORMERS = {
    "MLmodel": b"flavors: {}",
    "model/config.json": b"{}",
    "model/model.safetensors": b"weights",
    "components/tokenizer/tokenizer.json": b"[]",
    "components/tokenizer/config.json": b"the tokenizer's",
    "requirements.txt": b"torch",
}


CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}


class MlflowServer(LoopbackServer):
    """A tracking server with one registered model, `tiny`, whose version 3 (alias `best`) holds `files`.

    `status` other than 200 answers everything with an error, `short` cuts artifacts in half.
    """

    NAME, VERSION, ALIAS = "tiny", "3", "best"

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        status: int = 200,
        short: bool = False,
        sizes: bool = True,
    ) -> None:
        self.files, self.status, self.short, self.sizes = files, status, short, sizes

    class HANDLER(Handler):
        def do_GET(self) -> None:
            owner = cast("MlflowServer", cast("Any", self.server).owner)
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if owner.status != 200:
                self._json(owner.status, {"error_code": CODES[owner.status], "message": "no"})
            elif path.startswith("/api/2.0/mlflow/"):
                self._registry(owner, path.removeprefix("/api/2.0/mlflow/"), query)
            elif path.rstrip("/").endswith("/mlflow-artifacts/artifacts"):
                self._json(200, {"files": owner.listed(query["path"][0])})
            else:
                found = re.fullmatch(
                    r"/api/2\.0/mlflow-artifacts/artifacts/root/(.*)", unquote(path)
                )
                data = owner.files.get(found[1]) if found else None
                if data is None:
                    # Such as the address of a presigned download, which this server doesn't offer.
                    self._json(404, {"error_code": CODES[404], "message": "no such endpoint"})
                    return
                self.answer(200, data[: len(data) // 2] if owner.short else data)

        def _registry(self, owner: MlflowServer, call: str, query: Mapping[str, list[str]]) -> None:
            known = query.get("name") == [owner.NAME] and (
                query.get("version") == [owner.VERSION]
                or query.get("alias") == [owner.ALIAS]
                or call == "registered-models/get"
            )
            if not known:
                missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such version"}
                self._json(404, missing)
            elif call == "registered-models/get":
                self._json(200, {"registered_model": {"name": owner.NAME}})
            elif call == "model-versions/get-download-uri":
                self._json(200, {"artifact_uri": "mlflow-artifacts:/root"})
            else:
                version = {"name": owner.NAME, "version": owner.VERSION, "creation_timestamp": 1}
                self._json(200, {"model_version": version})

        def _json(self, status: int, document: object) -> None:
            self.answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def listed(self, folder: str) -> list[dict[str, Any]]:
        """The directory `folder`, which begins with `root`, as the artifact server lists it."""
        inside = folder.removeprefix("root").strip("/")
        prefix = f"{inside}/" if inside else ""
        below = {
            p.removeprefix(prefix): data for p, data in self.files.items() if p.startswith(prefix)
        }
        folders = {p.split("/")[0] for p in below if "/" in p}
        files = [
            {"path": p, "is_dir": False, **({"file_size": len(data)} if self.sizes else {})}
            for p, data in below.items()
            if "/" not in p
        ]
        return [*files, *({"path": p, "is_dir": True} for p in sorted(folders))]


@pytest.fixture(autouse=True)
def mlflow_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tries beyond the first, no runs directory in the tree, leave to use a file store."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "86400")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)


def no_bucket(address: str) -> None:
    """Every address is of no bucket."""


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def fetched(source: ModelSource) -> dict[str, bytes]:
    return {
        file.path: source.fetch(file, lambda _: None).read_bytes() for file in source.list().files
    }


def registered(tmp_path: Path, source: str) -> tuple[str, str]:
    """A file store with version 1 of `llm` at `source`; its address, and the version.

    Under a name that no other test had: MLflow remembers stores by address, and pytest gives a passed test's directory
    to the next one of that name.
    """
    store = Path(tempfile.mkdtemp(prefix="store-", dir=tmp_path)).as_uri()
    from mlflow import MlflowClient  # noqa: PLC0415 # takes seconds, which every run's collection would pay

    client = MlflowClient(store, store)
    client.create_registered_model("llm")
    version = client.create_model_version("llm", source=source)
    client.set_registered_model_alias("llm", "prod", version.version)
    return store, str(version.version)


def in_store(
    tmp_path: Path,
    text: str,
    store: str,
    open_bucket: Callable[[str], ModelSource | None] = no_bucket,
) -> MlflowSource:
    settings = MlflowSettings(
        tmp_path / "work", open_bucket, tracking_uri=store, registry_uri=store
    )
    return MlflowSource(parse_mlflow(text), settings)


def at(server: MlflowServer, tmp_path: Path, text: str = "mlflow:models:/tiny/3") -> MlflowSource:
    return in_store(tmp_path, text, server.url)


@pytest.mark.parametrize(
    "text",
    ["mlflow:models:/llm/1", "mlflow:models:/my model/12", "mlflow:models:/llm@prod", "mlflow:runs:/1/a/b",
     f"mlflow:models:/m-{'0a' * 16}"],
)  # fmt: skip
def test_a_reference_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_mlflow(text)) == text


@pytest.mark.parametrize(
    "text",
    ["mlflow:models:/llm", "mlflow:models:/", "mlflow:models:/llm/x", "mlflow:models:/a/1/b", "mlflow:runs:/1",
     "mlflow:runs:/", "mlflow:runs:/1/../2", "mlflow:models:/m-1"],
)  # fmt: skip
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_mlflow(text)


@pytest.mark.parametrize("text", ["mlflow:models:/llm/1", "mlflow:models:/llm@prod"])
def test_a_version_in_a_directory(tmp_path: Path, text: str) -> None:
    store, version = registered(tmp_path, write(tmp_path / "a b", PLAIN).as_uri())
    source = in_store(tmp_path, text, store)
    assert fetched(source) == PLAIN
    assert (source.uri, source.revision) == ("mlflow:models:/llm", version)


def test_a_transformers_model_in_a_directory(tmp_path: Path) -> None:
    store, _ = registered(tmp_path, str(write(tmp_path / "model", TRANSFORMERS)))
    source = open_source(
        "mlflow:models:/llm/1", {"XDG_CACHE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": store}
    )
    assert fetched(source) == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"[]",
    }
    assert set(source.list().ignored) == {
        "MLmodel",
        "requirements.txt",
        "components/tokenizer/config.json",
    }


def test_what_a_run_made_is_read_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's artifacts, a logged model, and versions that name one of them in place of an address."""
    from mlflow import MlflowClient  # noqa: PLC0415

    store = Path(tempfile.mkdtemp(prefix="store-", dir=tmp_path)).as_uri()
    client = MlflowClient(store, store)
    run = client.create_run(client.create_experiment("e")).info
    client.log_artifacts(run.run_id, str(write(tmp_path / "plain", PLAIN)), "nested/model")
    # MLflow asks the default store of a version's logged model, and its public function makes it only there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    logged = client._create_logged_model(run.experiment_id, "logged", run.run_id)
    write(Path(logged.artifact_location.removeprefix("file://")), TRANSFORMERS)
    client.create_registered_model("llm")
    for address in (f"runs:/{run.run_id}/nested/model", f"models:/{logged.model_id}"):
        client.create_model_version("llm", address, run_id=run.run_id)
    transformers = {path: TRANSFORMERS[at] for path, at in checkpoint_paths(TRANSFORMERS).items()}
    for text, files, revision in (
        (f"mlflow:runs:/{run.run_id}/nested/model", PLAIN, ""),
        (f"mlflow:runs:/{run.run_id}/logged", transformers, ""),
        (f"mlflow:models:/{logged.model_id}", transformers, ""),
        ("mlflow:models:/llm/1", PLAIN, "1"),
        ("mlflow:models:/llm/2", transformers, "2"),
    ):
        source = in_store(tmp_path, text, store)
        assert fetched(source) == files
        assert (source.uri, source.revision) == (text.removesuffix(f"/{revision}"), revision)
        assert source.list().origin == {"mlflowRun": run.run_id}
    for text in ("mlflow:runs:/gone/model", f"mlflow:models:/m-{'0' * 32}"):
        with pytest.raises(WeightyardError):
            in_store(tmp_path, text, store).list()


def test_a_version_in_a_bucket_is_read_as_one(tmp_path: Path) -> None:
    store, _ = registered(tmp_path, "s3://bucket/runs/1/model")
    folder = write(tmp_path / "bucket", PLAIN)
    asked: list[str] = []

    def open_s3(address: str) -> ModelSource | None:
        asked.append(address)
        return LocalSource(folder)

    assert fetched(in_store(tmp_path, "mlflow:models:/llm/1", store, open_s3)) == PLAIN
    assert asked == ["s3://bucket/runs/1/model"]


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    store, _ = registered(tmp_path, (tmp_path / "gone").as_uri())
    for text in ("mlflow:models:/llm/7", "mlflow:models:/other/1", "mlflow:models:/llm/1"):
        with pytest.raises(NotFound):
            in_store(tmp_path, text, store).list()
    with pytest.raises((NotFound, InvalidInput)):
        in_store(tmp_path, "mlflow:models:/llm@gone", store).list()


@pytest.mark.parametrize("text", ["mlflow:models:/tiny/3", "mlflow:models:/tiny@best"])
@pytest.mark.parametrize("files", [PLAIN, TRANSFORMERS])
def test_a_version_on_the_artifact_server(
    tmp_path: Path, text: str, files: dict[str, bytes]
) -> None:
    expected = {path: files[place] for path, place in checkpoint_paths(files).items()}
    with MlflowServer(files) as server:
        source = at(server, tmp_path, text)
        assert fetched(source) == expected
        assert source.revision == "3"
        counts: list[int] = []
        for file in source.list().files:
            source.fetch(file, counts.append)
    assert sum(counts) == sum(map(len, expected.values()))
    assert all(path.is_file() for path in (tmp_path / "work").iterdir())


@pytest.mark.parametrize("scheme", ["file://", "file:", "FILE://localhost", ""])
def test_a_registry_elsewhere_names_no_file_of_this_machine(tmp_path: Path, scheme: str) -> None:
    directory = write(tmp_path / "secrets", PLAIN)

    class Naming(MlflowServer):
        class HANDLER(MlflowServer.HANDLER):
            def _json(self, status: int, document: object) -> None:
                if isinstance(document, dict) and "artifact_uri" in document:
                    document = {"artifact_uri": f"{scheme}{directory}"}
                super()._json(status, document)

    with Naming(PLAIN) as server, pytest.raises(InvalidInput, match="files of this machine"):
        at(server, tmp_path).list()


def test_a_file_that_came_is_not_fetched_again(tmp_path: Path) -> None:
    with MlflowServer(PLAIN) as server:
        source = at(server, tmp_path)
        files = source.list().files
        first = [source.fetch(file, lambda _: None) for file in files]
    assert [source.fetch(file, lambda _: None) for file in files] == first


def test_a_file_that_comes_short_is_not_kept(tmp_path: Path) -> None:
    with MlflowServer(PLAIN, short=True) as server:
        source = at(server, tmp_path)
        with pytest.raises(Unreachable, match="1 of 2 bytes"):
            fetched(source)
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == []


FAULTS: Mapping[int, type[WeightyardError]] = {
    400: InvalidInput,
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    429: Unreachable,  # MLflow has tried again by then, and says only that it got nowhere
    500: Unreachable,
    503: Unreachable,
}


@pytest.mark.parametrize("status", FAULTS)
@pytest.mark.parametrize("late", [False, True])
def test_no_error_of_mlflow_leaks(tmp_path: Path, status: int, late: bool) -> None:
    with MlflowServer(PLAIN) as server:
        source = at(server, tmp_path)
        if late:
            source.list()
        server.status = status
        with pytest.raises(WeightyardError) as caught:
            source.fetch(SourceFile("config.json", 2), lambda _: None)
    assert type(caught.value) is FAULTS[status]
    assert caught.value.__cause__ is not None


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unreachable):
        in_store(tmp_path, "mlflow:models:/llm/1", address).list()


def test_sizes_that_are_not_told(tmp_path: Path) -> None:
    with (
        MlflowServer(PLAIN, sizes=False) as server,
        pytest.raises(WeightyardError, match="how large"),
    ):
        at(server, tmp_path).list()


def test_a_version_without_files(tmp_path: Path) -> None:
    with MlflowServer({}) as server, pytest.raises(NotFound, match="nothing"):
        at(server, tmp_path).list()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["config.json", "x/config.json"], {"config.json": "config.json", "x/config.json": "x/config.json"}),
        (["MLmodel", "artifacts/llm/config.json", "artifacts/llm/w.safetensors"],
         {"config.json": "artifacts/llm/config.json", "w.safetensors": "artifacts/llm/w.safetensors"}),
        (["a/config.json", "b/c/config.json"], {"config.json": "a/config.json"}),
        (["model.gguf", "MLmodel"], {"model.gguf": "model.gguf", "MLmodel": "MLmodel"}),
        ([], {}),
    ],
)  # fmt: skip
def test_the_checkpoint_in_a_version(paths: list[str], expected: dict[str, str]) -> None:
    assert checkpoint_paths(paths) == expected


def test_a_reference_is_a_value() -> None:
    assert parse_mlflow("mlflow:models:/a@b") == MlflowReference("a", None, "b")

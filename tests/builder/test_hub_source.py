"""The Hub as a source, through huggingface-hub against a real server on loopback."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import errors, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from builder.sources.factory import open_source
from builder.sources.hub import HubModelSource
from builder.sources.interface import SourceFile
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NoSpace,
    NotFound,
    NotWritable,
    RateLimited,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.hub import HubReference, parse_hub
from tests.builder.checkpoints import single
from tests.servers.hub import Hub

pytestmark = pytest.mark.servers
# The HTTP client that this version of huggingface-hub was made with.
httpx = import_module(errors.HTTPError.__module__.partition(".")[0])
UniqueName = Callable[[str], str]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return single(tmp_path / "checkpoint")


@pytest.fixture
def name(unique_name: UniqueName) -> str:
    return unique_name("org/tiny")


def source(hub: Hub, tmp_path: Path, name: str, revision: str | None = None) -> HubModelSource:
    return HubModelSource(HubReference(name, revision), endpoint=hub.url, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    "text", ["hf://org/name", "hf://gpt2", "hf://org/name@v1.0", "hf://o/n@refs/pr/1"]
)
def test_a_reference_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_hub(text)) == text


def test_the_commit_is_pinned_and_claims_come_from_lfs(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    commit = hub.add(name, checkpoint)
    opened = source(hub, tmp_path, name)
    listing = opened.list()
    assert (opened.uri, opened.revision) == (f"hf://{name}", commit)
    files = {file.path: file for file in listing.files}
    assert set(files) == {path.name for path in checkpoint.iterdir()}
    weights = (checkpoint / "model.safetensors").read_bytes()
    assert files["model.safetensors"].claimed == Digest.of(weights)
    assert files["config.json"].claimed is None


def test_a_mirror_that_lists_names_only_is_asked_for_each_size(
    tmp_path: Path, checkpoint: Path, name: str
) -> None:
    with Hub() as hub, Hub(names_only=True) as mirror:
        for server in (hub, mirror):
            server.add(name, checkpoint)
        assert source(mirror, tmp_path, name).list() == source(hub, tmp_path, name).list()


def test_an_endpoint_may_end_with_a_slash(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    hub.add(name, checkpoint)
    opened = open_source(f"hf://{name}", {"HF_ENDPOINT": f"{hub.url}/"})
    files = {file.path: file for file in opened.list().files}
    read = opened.remote(files["model.safetensors"])
    assert read is not None
    assert b"".join(read.read(0)) == (checkpoint / "model.safetensors").read_bytes()


def test_offline_the_cache_is_the_source(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(name, checkpoint)
    online = source(hub, tmp_path, name)
    listing = online.list()
    # As `hf download` fills the cache: it notes the commit of the branch too.
    snapshot_download(name, endpoint=hub.url, cache_dir=tmp_path / "cache")
    paths = [online.fetch(file, lambda _: None) for file in listing.files]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    # By the branch too: the cache remembers its commit.
    for revision in (None, "main", online.revision):
        opened = source(hub, tmp_path, name, revision)
        assert opened.list().files == listing.files
        assert opened.revision == online.revision
        assert [opened.fetch(file, lambda _: None) for file in listing.files] == paths
        assert all(opened.remote(file) is None for file in listing.files)
    assert len(hub.requests) == before
    assert isinstance(fails(source(hub, tmp_path, f"{name}-other")), Unreachable)


def test_a_token_that_may_not_be_used_unasked_is_not_sent(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(name, checkpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token())
    for disabled in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", disabled)
        opened = source(hub, tmp_path, name)
        files = {file.path: file for file in opened.list().files}
        read = opened.remote(files["model.safetensors"])
        assert read is not None
        hub.requests.clear()
        assert b"".join(read.read(0))
        assert [request.authorized for request in hub.requests] == [not disabled]


def test_files_come_from_the_pinned_commit_after_the_branch_moved(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    hub.add(name, checkpoint)
    opened = source(hub, tmp_path, name)
    files = {file.path: file for file in opened.list().files}
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    (moved / "config.json").write_bytes(b'{"moved": true}')
    hub.add(name, moved)
    fetched = opened.fetch(files["config.json"], lambda _: None)
    assert fetched.read_bytes() == (checkpoint / "config.json").read_bytes()


def test_progress_is_what_was_transferred(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    hub.add(name, checkpoint)
    opened = source(hub, tmp_path, name)
    (weights,) = [file for file in opened.list().files if file.path == "model.safetensors"]
    before = downloads(hub)
    for transferred in (weights.size, 0):
        counts: list[int] = []
        path = opened.fetch(weights, counts.append)
        assert sum(counts) == transferred
        assert path.stat().st_size == weights.size
    assert downloads(hub) == before + 1


def downloads(hub: Hub) -> int:
    return sum(request.method == "GET" for request in hub.cdn.requests)


def test_a_branch_a_tag_and_a_commit_are_revisions(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    commit = hub.add(name, checkpoint, revision="v1")
    for revision in ("v1", commit):
        opened = source(hub, tmp_path, name, revision)
        opened.list()
        assert opened.revision == commit


def fails(opened: HubModelSource) -> WeightyardError:
    with pytest.raises(WeightyardError) as caught:
        opened.list()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_missing_repository_and_a_missing_revision_are_not_found(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    assert isinstance(fails(source(hub, tmp_path, name)), NotFound)
    hub.add(name, checkpoint)
    assert isinstance(fails(source(hub, tmp_path, name, "nothing")), NotFound)


def test_a_gated_repository_needs_a_token_that_has_access(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, stranger = hub.token(), hub.token()
    hub.add(name, checkpoint, gated=True, readers=(reader,))
    for token in (None, stranger):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        opened = source(hub, tmp_path, name)
        (config,) = [file for file in opened.list().files if file.path == "config.json"]
        with pytest.raises(AccessDenied, match="gated"):
            opened.fetch(config, lambda _: None)
    monkeypatch.setenv("HF_TOKEN", reader)
    opened = source(hub, tmp_path, name)
    (config,) = [file for file in opened.list().files if file.path == "config.json"]
    assert opened.fetch(config, lambda _: None).read_bytes()


def test_a_private_repository_looks_like_none_without_its_token(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = hub.token()
    hub.add(name, checkpoint, private=True, readers=(reader,))
    assert isinstance(fails(source(hub, tmp_path, name)), NotFound)
    monkeypatch.setenv("HF_TOKEN", reader)
    assert source(hub, tmp_path, name).list().files


def test_a_hub_that_does_not_answer_is_unreachable(tmp_path: Path, name: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    opened = HubModelSource(HubReference(name), endpoint=address, cache=tmp_path)
    assert isinstance(fails(opened), Unreachable)


def answered(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx.Request("GET", "http://127.0.0.1/")
    response = httpx.Response(status, headers=headers, request=request)
    return HfHubHTTPError("the whole story\nover lines", response=response)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (answered(401), AccessDenied),
        (answered(403), AccessDenied),
        (answered(429), RateLimited),
        (answered(500), Unreachable),
        (answered(503), Unreachable),
        (answered(400), RemoteRefused),
        (errors.HFValidationError("x"), InvalidInput),
        (errors.OfflineModeIsEnabled("x"), Unreachable),
        (errors.LocalEntryNotFoundError("x"), Unreachable),
        (ConnectionResetError(), Unreachable),
        (OSError(errno.ENOSPC, "full"), NoSpace),
        (PermissionError(errno.EACCES, "no"), NotWritable),
    ],
    ids=repr,
)
def test_no_exception_of_the_library_leaves(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[WeightyardError]
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise raised

    monkeypatch.setattr("builder.sources.hub.hf_hub_download", fail)
    with pytest.raises(expected) as caught:
        HubModelSource(HubReference("org/name")).fetch(SourceFile("a", 1), lambda _: None)
    assert caught.value.__cause__ is raised
    assert "\n" not in caught.value.message


def test_a_hub_that_says_when_to_come_back_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise answered(429, **{"Retry-After": "7"})

    monkeypatch.setattr("builder.sources.hub.hf_hub_download", fail)
    with pytest.raises(RateLimited) as caught:
        HubModelSource(HubReference("org/name")).fetch(SourceFile("a", 1), lambda _: None)
    assert caught.value.retry_after == 7


def test_a_file_that_is_not_there_is_not_found(
    hub: Hub, tmp_path: Path, checkpoint: Path, name: str
) -> None:
    hub.add(name, checkpoint)
    opened = source(hub, tmp_path, name)
    opened.list()
    with pytest.raises(NotFound):
        opened.fetch(SourceFile("nothing.json", 1), lambda _: None)

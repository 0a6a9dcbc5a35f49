"""The Hub endpoint with the real huggingface_hub and transformers as its clients."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cache_agent.config import AgentConfig, SignatureSection
from cache_agent.daemon.servers import ServerOptions
from cache_agent.observability.events import Event, Events, HubImageIgnored
from cache_agent.servers.hub.view import make_view
from modelimage.errors import InvalidInput, NotWritable
from modelimage.hub import DEFAULT_ENDPOINT
from modelimage.record import Record
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.published import (
    PublishedModel,
    model_files,
    publish,
    records_of,
)
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry
from weightyard.cli import main

pytestmark = pytest.mark.servers
LOOPBACK = ("127.0.0.1:*", "*.0.0.1:*")


def directory_of(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def contents(path: str | Path) -> dict[str, bytes]:
    root = Path(path)
    found = (each for each in root.rglob("*") if each.is_file() and ".cache" not in each.parts)
    return {each.relative_to(root).as_posix(): each.read_bytes() for each in found}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client waits for an endpoint on a busy machine."""
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "DEFAULT_REQUEST_TIMEOUT"):
        monkeypatch.setattr(constants, name, 3600)


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    """A Hub that the test may stop."""
    with Hub() as server:
        yield server


@pytest.fixture
def open_servers(tmp_root: Path) -> Iterator[Callable[..., ServersInProcess]]:
    opened: list[ServersInProcess] = []

    def start(hub: str, *images: str) -> ServersInProcess:
        options = ServerOptions(hub=ANY, registries=LOOPBACK, hub_upstream=hub, hub_images=images)
        servers = ServersInProcess(tmp_root / "store", options).__enter__()
        opened.append(servers)
        return servers

    yield start
    for servers in opened:
        servers.__exit__()
    assert findings(tmp_root / "store") == []


def endpoint(servers: ServersInProcess) -> str:
    return f"http://{servers.servers.hub}"


def test_the_variable_overrides_the_settings_endpoint() -> None:
    for environment, expected in (
        ({}, DEFAULT_ENDPOINT),
        ({"HF_ENDPOINT": "https://mirror.example/hub/"}, "https://mirror.example/hub"),
    ):
        assert ServerOptions.of(AgentConfig(), environment).hub_upstream == expected


def published_from(hub_repo: str, commit: str, image: str, seed: int) -> PublishedModel:
    files = model_files(seed)
    record, blobs = records_of(files, source=f"hf://{hub_repo}", revision=commit)
    return publish(image, [record], blobs, files)


def snapshot(servers: ServersInProcess, repo: str, to: Path, **options: Any) -> str:
    return snapshot_download(repo, endpoint=endpoint(servers), cache_dir=to, **options)


def test_a_snapshot_comes_from_the_cache_after_the_hub_has_gone(
    open_servers: Callable[..., ServersInProcess],
    own_hub: Hub,
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    files = model_files(21)
    commit = own_hub.add("org/model", directory_of(files, tmp_path / "src"))
    model = published_from("org/model", commit, f"{registry.host}/hub/gone:v1", 21)
    servers = open_servers(own_hub.url)
    servers.pull(model.image)
    before = len(own_hub.cdn.requests)
    first = snapshot(servers, "org/model", tmp_path / "one")
    assert (Path(first).name, contents(first)) == (commit, files)
    # The weights came from the disk: the Hub's content server was asked whether this caller may, and for nothing else.
    assert {each.method for each in own_hub.cdn.requests[before:]} <= {"HEAD"}
    shutil.rmtree(tmp_path / "src")
    own_hub.__exit__()
    second = snapshot(servers, "org/model", tmp_path / "two")
    assert contents(second) == files
    assert contents(snapshot(servers, "org/model", tmp_path / "three", revision=commit)) == files
    own_hub.__enter__()


def test_an_image_vouched_for_stands_in_for_a_hub_never_reached(
    open_servers: Callable[..., ServersInProcess],
    registry: DockerRegistry,
    tmp_path: Path,
    deserted: str,
) -> None:
    commit = "ab" * 20
    model = published_from("org/model", commit, f"{registry.host}/hub/vouched:v1", 22)
    servers = open_servers(f"http://{deserted}", f"{registry.host}/hub/*")
    servers.pull(model.image)
    found = snapshot(servers, "org/model", tmp_path / "one")
    assert (Path(found).name, contents(found)) == (commit, dict(model.files))


def test_an_image_vouched_for_needs_the_signature_that_is_asked_for(
    open_servers: Callable[..., ServersInProcess],
    deserted: str,
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    model = published_from("org/signed", "c" * 40, f"{registry.host}/hub/signed:v1", 28)
    servers = open_servers(f"http://{deserted}", f"{registry.host}/hub/*")
    servers.pull(model.image)
    assert contents(snapshot(servers, "org/signed", tmp_path / "before")) == model_files(28)
    key = tmp_path / "team.pub"
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key.write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    servers.node.trust.reconfigure((SignatureSection(images="*", keys=(key,)),))
    with pytest.raises(HfHubHTTPError, match="502"):
        HfApi(endpoint=endpoint(servers)).model_info("org/signed")


def test_a_record_s_word_on_its_source_is_not_believed_unless_vouched_for(
    open_servers: Callable[..., ServersInProcess],
    registry: DockerRegistry,
    deserted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the operator is told which setting would do it: once, however often clients ask."""
    told: list[Event] = []
    monkeypatch.setattr(Events, "emit", lambda _, event: told.append(event))
    model = published_from("org/model", "ab" * 20, f"{registry.host}/evil/model:v1", 23)
    servers = open_servers(f"http://{deserted}", f"{registry.host}/hub/*")
    servers.pull(model.image)
    for _ in range(2):
        assert fetch(str(servers.servers.hub), "/org/model/resolve/main/config.json").status == 502
    (ignored,) = [event for event in told if isinstance(event, HubImageIgnored)]
    assert (ignored.repo, ignored.image) == ("org/model", model.image)
    assert "servers.hub_images" in ignored.detail


def test_a_forged_source_gives_no_other_bytes_than_the_hub_lists(
    open_servers: Callable[..., ServersInProcess],
    own_hub: Hub,
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    files = model_files(24)
    commit = own_hub.add("org/model", directory_of(files, tmp_path / "src"))
    forged = published_from("org/model", commit, f"{registry.host}/evil/other:v1", 25)
    servers = open_servers(own_hub.url)
    servers.pull(forged.image)
    assert contents(snapshot(servers, "org/model", tmp_path / "one")) == files


def test_what_is_not_cached_comes_from_the_hub(
    open_servers: Callable[..., ServersInProcess], own_hub: Hub, tmp_path: Path
) -> None:
    files = model_files(26)
    own_hub.add("org/plain", directory_of(files, tmp_path / "src"))
    servers = open_servers(own_hub.url)
    assert contents(snapshot(servers, "org/plain", tmp_path / "one")) == files
    host = str(servers.servers.hub)
    part = fetch(host, "/org/plain/resolve/main/model.safetensors", headers={"Range": "bytes=7-99"})
    assert (part.status, part.body) == (206, files["model.safetensors"][7:100])
    own_hub.__exit__()
    # What came once is here.
    assert contents(snapshot(servers, "org/plain", tmp_path / "two")) == files
    own_hub.__enter__()


def test_a_private_model_is_given_to_its_readers_only(
    open_servers: Callable[..., ServersInProcess],
    own_hub: Hub,
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    reader, stranger = own_hub.token(), own_hub.token()
    files = model_files(27)
    source = directory_of(files, tmp_path / "src")
    for name, options in {
        "org/private": {"private": True},
        "org/gated": {"gated": True},
    }.items():
        commit = own_hub.add(name, source, readers=(reader,), **options)
    model = published_from("org/private", commit, f"{registry.host}/hub/private:v1", 27)
    servers = open_servers(own_hub.url)
    servers.pull(model.image)
    for name in ("org/private", "org/gated"):
        assert contents(snapshot(servers, name, tmp_path / name, token=reader)) == files
    for token in (stranger, False):
        with pytest.raises(RepositoryNotFoundError):
            snapshot(servers, "org/private", tmp_path / "none", token=token)
        with pytest.raises(GatedRepoError):
            hf_hub_download(
                "org/gated", "config.json", endpoint=endpoint(servers), cache_dir=tmp_path / "none", token=token
            )  # fmt: skip
    with pytest.raises(HfHubHTTPError, match="401"):
        snapshot(servers, "org/private", tmp_path / "none", token="hf_forged")


def test_errors_are_the_hub_s(
    open_servers: Callable[..., ServersInProcess], own_hub: Hub, tmp_path: Path
) -> None:
    own_hub.add("org/model", directory_of(model_files(28), tmp_path / "src"))
    servers = open_servers(own_hub.url)
    where: dict[str, Any] = {"endpoint": endpoint(servers), "cache_dir": tmp_path / "none"}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "nothing.json", **where)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "config.json", revision="nothing", **where)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("org/nothing", "config.json", **where)


def test_the_api_s_views(
    open_servers: Callable[..., ServersInProcess], own_hub: Hub, tmp_path: Path
) -> None:
    files = model_files(29)
    commit = own_hub.add("org/model", directory_of(files, tmp_path / "src"))
    api, direct = HfApi(endpoint=endpoint(open_servers(own_hub.url))), HfApi(endpoint=own_hub.url)
    info = api.model_info("org/model", files_metadata=True)
    assert info.sha == commit
    assert info.siblings == direct.model_info("org/model", files_metadata=True).siblings
    for recursive in (True, False):
        ours = {e.path: type(e) for e in api.list_repo_tree("org/model", recursive=recursive)}
        theirs = {e.path: type(e) for e in direct.list_repo_tree("org/model", recursive=recursive)}
        assert ours == theirs
    assert [e.path for e in api.list_repo_tree("org/model", "sub")] == ["sub/tokenizer.json"]
    assert [e.path for e in api.get_paths_info("org/model", ["config.json", "x"])] == [
        "config.json"
    ]
    assert api.file_exists("org/model", "config.json")
    assert not api.file_exists("org/model", "x.json")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(
    open_servers: Callable[..., ServersInProcess], deserted: str, method: str
) -> None:
    host = str(open_servers(f"http://{deserted}").servers.hub)
    for path in ("/api/models/org/m", "/org/m/resolve/main/x"):
        assert fetch(host, path, method=method).status == 405
    assert fetch(host, "/api/repos/create", method=method).status == 404


@pytest.mark.parametrize(
    "path",
    ["/org/m/resolve/main/../../etc/passwd", "/org/m/resolve/main/%2e%2e%2fx", "/org/m/resolve/..%2f/x",
     "/../m/resolve/main/x", "/api/models/..%2f..", "/api/models/a/b/c/d", "/", "/org/m/resolve/main/a%00b"],
)  # fmt: skip
def test_path_tricks_lead_nowhere(
    open_servers: Callable[..., ServersInProcess], deserted: str, path: str
) -> None:
    assert fetch(str(open_servers(f"http://{deserted}").servers.hub), path).status in (400, 404)


def test_transformers_reads_config_and_tokenizer_through_the_endpoint(
    open_servers: Callable[..., ServersInProcess],
    own_hub: Hub,
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers.utils.hub as transformers_hub  # noqa: PLC0415 - slow to import
    from huggingface_hub import file_download, hf_api  # noqa: PLC0415
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415

    small = tmp_path / "src"
    small.mkdir()
    for file in smollm2.iterdir():
        if file.stat().st_size < 10_000_000:
            shutil.copy(file, small)
    own_hub.add("org/smol", small)
    servers = open_servers(own_hub.url)
    snapshot(servers, "org/smol", tmp_path / "warm")
    own_hub.__exit__()
    # As HF_ENDPOINT in a program's environment does before it starts.
    for module in (constants, file_download, hf_api, transformers_hub):
        for name in ("ENDPOINT", "HF_ENDPOINT", "_HF_DEFAULT_ENDPOINT"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, endpoint(servers))
    template = f"{endpoint(servers)}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    config = AutoConfig.from_pretrained("org/smol", cache_dir=tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained("org/smol", cache_dir=tmp_path / "cache")
    assert config.hidden_size == json.loads((small / "config.json").read_text())["hidden_size"]
    assert (
        tokenizer.decode(tokenizer("The capital of France")["input_ids"]) == "The capital of France"
    )
    own_hub.__enter__()


def test_a_view_is_an_hf_cache_of_the_same_inodes(
    open_servers: Callable[..., ServersInProcess],
    registry: DockerRegistry,
    tmp_root: Path,
    deserted: str,
) -> None:
    commit = "cd" * 20
    model = published_from("org/model", commit, f"{registry.host}/hub/view:v1", 30)
    servers = open_servers(f"http://{deserted}")
    path = servers.pull(model.image).path
    view = make_view(tmp_root / "hf", path, model.record)
    assert make_view(tmp_root / "hf", path, model.record).linked == 0
    offline = snapshot_download("org/model", cache_dir=tmp_root / "hf", local_files_only=True)
    assert (Path(offline), contents(offline)) == (view.path, dict(model.files))
    for name in model.files:
        assert (view.path / name).samefile(path / name)


def test_the_command_makes_a_view_of_a_cached_model(
    registry: DockerRegistry, tmp_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published_from("org/model", "ab" * 20, f"{registry.host}/hub/command:v1", 32)
    where = ["--root", str(tmp_root / "store")]
    assert main(["pull", model.image, *where]) == 0
    capsys.readouterr()
    assert main(["hf-view", model.image, str(tmp_root / "hf"), *where]) == 0
    said = capsys.readouterr()
    assert contents(said.out.strip()) == dict(model.files)
    assert "HF_HUB_OFFLINE=1" in said.err


def test_a_view_needs_a_model_of_the_hub_and_leaves_other_files_alone(tmp_path: Path) -> None:
    record, _ = records_of(model_files(31))
    with pytest.raises(InvalidInput):
        make_view(tmp_path / "hf", tmp_path, record)
    known: Record = records_of(model_files(31), source="hf://org/m", revision="ef" * 20)[0]
    model = directory_of(model_files(31), tmp_path / "model")
    view = make_view(tmp_path / "hf", model, known)
    (view.path / "config.json").unlink()
    (view.path / "config.json").write_bytes(b"mine")
    with pytest.raises(NotWritable):
        make_view(tmp_path / "hf", model, known)
    assert (view.path / "config.json").read_bytes() == b"mine"

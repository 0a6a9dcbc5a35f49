"""What clients of the Hub from huggingface_hub 0.20 on ask the endpoint, with the Hub there and away.

The installed client is asked itself; what older ones send differently is recorded as requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import is_xet_available

from cache_agent.daemon.servers import ServerOptions
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import HttpAnswer, fetch
from tests.cache_agent.servers.published import model_files, publish, records_of
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
REPO, PULL_REQUEST = "org/model", "refs/pr/1"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SAID: dict[str, Any] = {
    "author": "org", "tags": ["safetensors", "base_model:mistralai/M-7B"], "pipeline_tag": "text-generation",
    "library_name": "transformers", "cardData": {"license": "mit", "temperature": 0.5}, "downloads": 7, "likes": 3,
    "lastModified": "2024-01-02T03:04:05.000Z", "config": {"model_type": "mistral"}, "resourceGroup": {"id": "x"},
}  # fmt: skip
README = b"---\nbase_model: mistralai/M-7B\n---\n# A model\n"


def files_of(seed: int) -> dict[str, bytes]:
    return {**model_files(seed), "README.md": README}


def written(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


class Node:
    """A Hub with one model, and an agent in front of it."""

    def __init__(self, hub: Hub, servers: ServersInProcess, commit: str) -> None:
        self.hub, self.servers, self.commit = hub, servers, commit
        self.host = str(servers.servers.hub)
        self.url = f"http://{self.host}"
        self.api = HfApi(endpoint=self.url)

    def fetch(self, path: str, method: str = "GET", **headers: str) -> HttpAnswer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return fetch(self.host, path, method=method, headers=named)

    def leave(self) -> None:
        """Stop the Hub."""
        self.hub.__exit__()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "DEFAULT_REQUEST_TIMEOUT"):
        monkeypatch.setattr(constants, name, 3600)


@pytest.fixture
def node(tmp_root: Path, tmp_path: Path) -> Iterator[Node]:
    with Hub() as hub:
        commit = hub.add(REPO, written(files_of(41), tmp_path / "src"), described=SAID)
        hub.add(REPO, tmp_path / "src", revision=PULL_REQUEST)
        hub.add("org/other", written(files_of(42), tmp_path / "other"))
        options = ServerOptions(hub=ANY, registries=("127.0.0.1:*",), hub_upstream=hub.url)
        with ServersInProcess(tmp_root / "store", options) as servers:
            yield Node(hub, servers, commit)
    assert findings(tmp_root / "store") == []


def described(node: Node, **options: Any) -> dict[str, Any]:
    info = node.api.model_info(REPO, **options)
    assert info.card_data is not None
    assert info.last_modified is not None
    return {
        "author": info.author, "tags": info.tags, "pipeline_tag": info.pipeline_tag, "library_name": info.library_name,
        "license": info.card_data.license, "downloads": info.downloads, "likes": info.likes,
        "modified": info.last_modified.year, "config": info.config, "private": info.private, "gated": info.gated,
        "sha": info.sha,
    }  # fmt: skip


def test_a_description_says_what_the_hub_said_also_while_it_is_away(node: Node) -> None:
    there = described(node)
    assert there == {
        "author": "org", "tags": SAID["tags"], "pipeline_tag": "text-generation", "library_name": "transformers",
        "license": "mit", "downloads": 7, "likes": 3, "modified": 2024, "config": SAID["config"], "private": False,
        "gated": False, "sha": node.commit,
    }  # fmt: skip
    # What concerns one caller isn't told to the others.
    assert "resourceGroup" not in json.loads(node.fetch(f"/api/models/{REPO}").body)
    node.leave()
    assert described(node) == there
    assert described(node, revision=node.commit) == there


def test_counters_that_change_leave_no_documents_behind(node: Node) -> None:
    described(node)
    kept = node.servers.node.manifest_cache.documents(f"hub:{REPO}")
    changed = {**SAID, "downloads": 8, "likes": 4}
    node.hub.add(
        REPO,
        Path(node.hub.repositories[REPO].commits[node.commit]["README.md"].source).parent,
        described=changed,
    )
    assert described(node)["downloads"] == 8
    assert node.servers.node.manifest_cache.documents(f"hub:{REPO}") == kept


def test_a_description_can_be_asked_for_in_part(node: Node) -> None:
    info = node.api.model_info(REPO, expand=["tags", "downloads"])
    assert (info.tags, info.downloads, info.sha, info.siblings) == (SAID["tags"], 7, None, None)


@pytest.mark.parametrize("away", [False, True])
def test_an_unknown_revision_and_file_are_404(node: Node, tmp_path: Path, away: bool) -> None:
    snapshot_download(REPO, endpoint=node.url, cache_dir=tmp_path / "warm")
    if away:
        node.leave()
    where: dict[str, Any] = {"endpoint": node.url, "cache_dir": tmp_path / "none"}
    for revision in ("nothing", "0" * 40, "refs/pr/9"):
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(REPO, "config.json", revision=revision, **where)
        with pytest.raises(RevisionNotFoundError):
            node.api.model_info(REPO, revision=revision)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "nothing.json", **where)
    # Clients remember by the commit that the file isn't there.
    assert (tmp_path / f"none/models--org--model/.no_exist/{node.commit}/nothing.json").exists()
    assert node.api.revision_exists(REPO, "main")
    assert not node.api.revision_exists(REPO, "nothing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("before", "after"), [("main", ""), ("", "main"), (PULL_REQUEST, ""), ("main", PULL_REQUEST)]
)
def test_without_the_hub_a_file_is_there_by_every_name_of_its_commit(
    node: Node, name: str, before: str, after: str
) -> None:
    for revision in (before, after):
        assert node.api.model_info(REPO, revision=revision or node.commit).sha
    given = node.fetch(f"/{REPO}/resolve/{before or node.commit}/{name}")
    node.leave()
    for method in ("HEAD", "GET"):
        answer = node.fetch(f"/{REPO}/resolve/{after or node.commit}/{name}", method)
        assert (answer.status, answer.headers["etag"]) == (200, given.headers["etag"])
    assert answer.body == given.body
    # What the Hub wasn't asked about isn't given: of a gated repository some files are open to everyone.
    assert node.fetch(f"/{REPO}/resolve/{after or node.commit}/README.md").status == 502


def test_a_stranger_learns_nothing_while_the_hub_is_away(tmp_root: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        reader, stranger = hub.token(), hub.token()
        source = written(files_of(43), tmp_path / "src")
        commit = hub.add("org/private", source, private=True, readers=(reader,))
        options = ServerOptions(hub=ANY, registries=("127.0.0.1:*",), hub_upstream=hub.url)
        with ServersInProcess(tmp_root / "store", options) as servers:
            host = str(servers.servers.hub)

            def status(path: str, token: str | None) -> int:
                shown = {"Authorization": f"Bearer {token}"} if token else {}
                return fetch(host, path, headers=shown).status

            file, missing = "/org/private/resolve/main/config.json", "/org/private/resolve/main/x"
            assert [status(file, token) for token in (reader, stranger, None)] == [200, 404, 401]
            hub.__exit__()
            assert status(missing, reader) == 404
            unknown = "/org/private/resolve/nothing/config.json"
            by_commit = f"/org/private/resolve/{commit}/config.json"
            assert status(by_commit, reader) == 200
            for path in (
                file,
                by_commit,
                missing,
                unknown,
                "/api/models/org/private/revision/nothing",
            ):
                assert [status(path, token) for token in (stranger, None)] == [502, 502]
            hub.__enter__()


@pytest.mark.parametrize("revision", ["refs/pr/1", "refs%2Fpr%2F1"])
@pytest.mark.parametrize("away", [False, True])
def test_the_hubs_own_refs_are_taken_escaped_or_not(node: Node, revision: str, away: bool) -> None:
    file = f"/{REPO}/resolve/{revision}/config.json"
    addresses = (
        file,
        f"/api/models/{REPO}/revision/{revision}",
        f"/api/models/{REPO}/tree/{revision}/sub",
    )
    expected = [json.loads(node.fetch(each).body) for each in addresses]
    assert expected[0]["model_type"] == "llama"
    if away:
        node.leave()
    answers = [node.fetch(each) for each in addresses]
    assert [each.status for each in answers] == [200, 200, 200]
    assert [json.loads(each.body) for each in answers] == expected


def test_a_snapshot_of_a_pull_request(node: Node, tmp_path: Path) -> None:
    found = snapshot_download(REPO, endpoint=node.url, cache_dir=tmp_path, revision=PULL_REQUEST)
    assert (Path(found) / "config.json").read_bytes() == files_of(41)["config.json"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"paths=sub&paths=config.json&paths=nothing&expand=False", FORM),
        (b"expand=false&paths=sub&paths=config.json&paths=nothing", FORM),
        (b'{"paths": ["sub/", "config.json", "nothing"], "expand": false}', {"Content-Type": "application/json"}),
    ],
)  # fmt: skip
def test_paths_are_of_files_and_folders(node: Node, body: bytes, headers: dict[str, str]) -> None:
    path = f"/api/models/{REPO}/paths-info/main"
    answer = fetch(node.host, path, method="POST", headers=headers, body=body)
    kinds = {each["path"]: each["type"] for each in json.loads(answer.body)}
    assert kinds == {"sub": "directory", "config.json": "file"}


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"paths": 7}', b"7", b"\xff", b'{"paths": ["a"']
)
def test_what_names_no_paths_is_a_bad_request(node: Node, body: bytes) -> None:
    path = f"/api/models/{REPO}/paths-info/main"
    headers = {"Content-Type": "application/json"}
    assert fetch(node.host, path, method="POST", headers=headers, body=body).status == 400


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_client_shows_that_only_models_are_served(node: Node, tmp_path: Path, kind: str) -> None:
    where: dict[str, Any] = {"endpoint": node.url, "cache_dir": tmp_path, "repo_type": kind}
    with pytest.raises(RepositoryNotFoundError, match="serves models only"):
        hf_hub_download("org/data", "x.csv", **where)
    with pytest.raises(RepositoryNotFoundError, match="serves models only"):
        snapshot_download("org/data", **where)
    with pytest.raises(RepositoryNotFoundError, match="serves models only"):
        node.api.repo_info("org/data", repo_type=kind)
    with pytest.raises(HfHubHTTPError, match="downloads of models only"):
        node.api.list_repo_refs(REPO)


def test_a_raw_file_is_what_git_has(node: Node) -> None:
    files = files_of(41)
    sub = node.fetch(f"/{REPO}/raw/main/sub/tokenizer.json")
    assert sub.body == files["sub/tokenizer.json"]
    readme = node.fetch(f"/{REPO}/raw/main/README.md")
    assert (readme.body, readme.headers["x-repo-commit"]) == (README, node.commit)
    assert readme.headers["content-type"].startswith("text/plain")
    mine = node.fetch(f"/{REPO}/raw/main/model.safetensors")
    theirs = fetch(node.hub.url.removeprefix("http://"), f"/{REPO}/raw/main/model.safetensors")
    assert mine.body == theirs.body
    assert mine.headers["etag"] == theirs.headers["etag"]
    assert node.servers.node.store.models.all() == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_clients_conditions_are_met(node: Node, name: str) -> None:
    data, path = files_of(41)[name], f"/{REPO}/resolve/main/{name}"
    etag = node.fetch(path).headers["etag"]
    for stated in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        for method in ("GET", "HEAD"):
            answer = node.fetch(path, method, If_None_Match=stated, Range="bytes=0-1")
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
            assert answer.headers["x-repo-commit"] == node.commit
    assert node.fetch(path, If_None_Match='"x"').status == 200
    head = node.fetch(path, "HEAD", Range="bytes=0-1")
    assert (head.status, head.headers["content-length"]) == (200, str(len(data)))
    assert "content-range" not in head.headers
    assert head.headers["content-disposition"].startswith("inline;")
    assert f'filename="{name}"' in head.headers["content-disposition"]
    assert (
        node.fetch(f"{path}?download=true", "HEAD")
        .headers["content-disposition"]
        .startswith("attachment;")
    )


def test_a_client_with_xet_downloads_without_it(node: Node, tmp_path: Path) -> None:
    assert is_xet_available()
    head = node.fetch(f"/{REPO}/resolve/main/model.safetensors", "HEAD")
    assert not [name for name in head.headers if "xet" in name]
    assert "link" not in head.headers
    found = hf_hub_download(REPO, "model.safetensors", endpoint=node.url, cache_dir=tmp_path)
    assert Path(found).read_bytes() == files_of(41)["model.safetensors"]


def test_a_trusted_image_says_what_its_files_say(
    tmp_root: Path, tmp_path: Path, registry: DockerRegistry, deserted: str,
    unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    commit, files = "ab" * 20, files_of(44)
    record, blobs = records_of(files, source=f"hf://{REPO}", revision=commit)
    image = f"{registry.host}/{unique_name('trusted')}/model:v1"
    publish(image, [record], blobs, files)
    options = ServerOptions(
        hub=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"), hub_upstream=f"http://{deserted}",
        hub_images=(f"{registry.host}/*",),
    )  # fmt: skip
    with ServersInProcess(tmp_root / "store", options) as servers:
        servers.pull(image)
        url = f"http://{servers.servers.hub}"
        api, where = HfApi(endpoint=url), {"endpoint": url, "cache_dir": tmp_path / "cache"}
        info = api.model_info(REPO)
        assert (info.sha, info.library_name, info.private) == (commit, "transformers", False)
        assert "base_model:mistralai/M-7B" in (info.tags or ())
        assert (info.config or {})["model_type"] == "llama"
        for revision in ("nothing", "cd" * 20):
            with pytest.raises(RevisionNotFoundError):
                hf_hub_download(REPO, "config.json", revision=revision, **where)
            with pytest.raises(RevisionNotFoundError):
                api.model_info(REPO, revision=revision)
        with pytest.raises(EntryNotFoundError):
            hf_hub_download(REPO, "nothing.json", **where)
        found = Path(snapshot_download(REPO, revision=commit, **where))
        assert {name: (found / name).read_bytes() for name in files} == files
        assert [type(each).__name__ for each in api.get_paths_info(REPO, ["sub"])] == ["RepoFolder"]
        host = str(servers.servers.hub)
        assert fetch(host, f"/{REPO}/raw/main/README.md").body == README
        assert b"git-lfs" in fetch(host, f"/{REPO}/raw/main/model.safetensors").body
        with pytest.raises(HfHubHTTPError, match="502"):
            api.model_info("org/never")
    assert findings(tmp_root / "store") == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/{REPO}/resolve/main/./config.json", "EntryNotFound"),
        (f"/{REPO}/resolve/main/a%2F..%2Fconfig.json", "EntryNotFound"),
        (f"/{REPO}/raw/main/a%5Cb", "EntryNotFound"),
        (f"/api/models/{REPO}/tree/main/a//b", "EntryNotFound"),
        (f"/{REPO}/resolve/-x/config.json", "RevisionNotFound"),
        (f"/api/models/{REPO}/revision/a%20b", "RevisionNotFound"),
    ],
)
def test_what_can_be_no_name_is_missing_like_any_other(node: Node, path: str, code: str) -> None:
    answer = node.fetch(path)
    assert (answer.status, answer.headers["x-error-code"]) == (404, code)
    assert answer.headers["x-error-message"]


def test_a_refused_method_says_which_are_allowed(node: Node) -> None:
    for path, allowed in (
        (f"/api/models/{REPO}", "GET, HEAD"),
        (f"/{REPO}/resolve/main/config.json", "GET, HEAD"),
        (f"/api/models/{REPO}/paths-info/main", "POST"),
    ):
        answer = node.fetch(path, "DELETE")
        assert (answer.status, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("stated", ["garbage", "Bearer", "Basic !", "Digest a=b"])
def test_credentials_that_are_none_are_refused_as_such(node: Node, stated: str) -> None:
    answer = node.fetch(f"/{REPO}/resolve/main/config.json", Authorization=stated)
    assert answer.status == 401
    assert "Authorization" in answer.headers["x-error-message"]

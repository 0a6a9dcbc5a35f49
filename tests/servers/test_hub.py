"""The Hub, tried with the real huggingface_hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import BlobLfsInfo, RepoFile

from tests.servers.hub import Hub

pytestmark = pytest.mark.servers

FILES = {
    "model.safetensors": bytes(range(256)) * 4096,
    "config.json": b"{}",
    "extra/notes/a b.md": b"# hi\n",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "model"


def files_under(root: Path) -> dict[str, bytes]:
    paths = [p for p in root.rglob("*") if p.is_file() and ".cache" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}


def test_a_snapshot_has_every_file(
    hub: Hub, model: Path, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("org/model")
    commit = hub.add(name, model)
    found = snapshot_download(name, endpoint=hub.url, cache_dir=tmp_path / "cache")

    assert files_under(Path(found)) == FILES
    assert Path(found).name == commit
    assert not any(request.authorized for request in hub.cdn.requests)


def test_files_are_described_with_size_and_sha256(
    hub: Hub, model: Path, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("org/model")
    commit = hub.add(name, model)
    api = HfApi(endpoint=hub.url)
    siblings = {s.rfilename: s for s in api.model_info(name, files_metadata=True).siblings or []}
    tree = {f.path: f for f in api.list_repo_tree(name, recursive=True)}
    paths = api.get_paths_info(name, ["config.json", "missing"])
    weights = tree["model.safetensors"]
    sha256 = hashlib.sha256(FILES["model.safetensors"]).hexdigest()

    assert api.model_info(name).sha == commit
    assert {s.rfilename: s.size for s in siblings.values()} == {n: len(d) for n, d in FILES.items()}
    assert siblings["model.safetensors"].lfs == BlobLfsInfo(
        size=1 << 20, sha256=sha256, pointer_size=132
    )
    assert set(tree) == {*FILES, "extra", "extra/notes"}
    assert isinstance(weights, RepoFile)
    assert weights.lfs == siblings["model.safetensors"].lfs
    assert [p.path for p in paths] == ["config.json"]


def test_a_long_listing_comes_in_pages(model: Path) -> None:
    with Hub(page_size=1) as hub:
        hub.add("org/model", model)
        api = HfApi(endpoint=hub.url)
        assert {f.path for f in api.list_repo_tree("org/model", recursive=True)} >= set(FILES)
        assert len([r for r in hub.requests if "/tree/" in r.path]) == 5


def test_a_moved_branch_keeps_the_old_commit(
    hub: Hub, model: Path, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("org/model")
    first = hub.add(name, model)
    (model / "config.json").write_bytes(b'{"new": 1}')
    second = hub.add(name, model)
    api = HfApi(endpoint=hub.url)

    assert first != second
    assert api.model_info(name).sha == second
    assert api.model_info(name, revision=first).sha == first


def test_gated_models_show_their_listing_and_keep_their_files(
    hub: Hub, model: Path, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    name, reader, stranger = unique_name("org/gated"), hub.token(), hub.token()
    hub.add(name, model, gated=True, readers=(reader,))

    assert HfApi(endpoint=hub.url).model_info(name).gated == "manual"
    for token in (False, stranger):
        with pytest.raises(GatedRepoError):
            snapshot_download(name, endpoint=hub.url, cache_dir=tmp_path / "no", token=token)
    found = snapshot_download(name, endpoint=hub.url, cache_dir=tmp_path / "yes", token=reader)
    assert files_under(Path(found)) == FILES


def test_private_models_do_not_exist_for_others(
    hub: Hub, model: Path, unique_name: Callable[[str], str]
) -> None:
    name, reader, stranger = unique_name("org/private"), hub.token(), hub.token()
    hub.add(name, model, private=True, readers=(reader,))
    api = HfApi(endpoint=hub.url)

    assert api.model_info(name, token=reader).private
    for token in (False, stranger):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(name, token=token)


def test_what_is_missing_has_its_own_error(
    hub: Hub, model: Path, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("org/model")
    hub.add(name, model)
    api = HfApi(endpoint=hub.url)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(name, revision="v9")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(name, "none.json")


def test_content_is_served_in_ranges_from_urls_that_expire(
    hub: Hub, model: Path, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("org/model")
    commit = hub.add(name, model)
    address = f"{hub.url}/{name}/resolve/main/model.safetensors"
    data = FILES["model.safetensors"]
    with urllib3.PoolManager(retries=False) as http:
        head = http.request("HEAD", address, redirect=False)
        assert head.status == 302
        assert head.headers["X-Repo-Commit"] == commit
        assert head.headers["X-Linked-Size"] == str(len(data))
        location = head.headers["Location"]
        for header, expected in {
            "bytes=5-9": data[5:10],
            "bytes=-3": data[-3:],
            "bytes=1000000-": data[1000000:],
        }.items():
            part = http.request("GET", location, headers={"Range": header})
            assert (part.status, part.data) == (206, expected)
        beyond = http.request("GET", location, headers={"Range": f"bytes={len(data)}-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(data)}")
        assert hub.cdn.requests[-1].sent == 0
        for signature, (file, _) in hub.cdn.signatures.items():
            hub.cdn.signatures[signature] = (file, 0.0)
        assert http.request("GET", location).status == 403

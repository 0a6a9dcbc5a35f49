"""The Hub's addresses, as clients write them, and what files are called in headers."""

from __future__ import annotations

import pytest

from cache_agent.servers.hub.api import content_disposition
from cache_agent.servers.hub.routes import HubAddress, NoModel, RepoRequest, parse_hub_address
from modelimage.errors import InvalidInput

INFO, TREE, PATHS, FILE, RAW = (
    RepoRequest.INFO, RepoRequest.TREE, RepoRequest.PATHS, RepoRequest.FILE, RepoRequest.RAW,
)  # fmt: skip
REPO = "org/model"
API = f"/api/models/{REPO}"

KNOWN = {
    API: (INFO, "main", ""),
    f"{API}/revision/v1.0": (INFO, "v1.0", ""),
    f"{API}/revision/refs%2Fpr%2F1": (INFO, "refs/pr/1", ""),
    f"{API}/revision/refs/pr/1": (INFO, "refs/pr/1", ""),
    f"{API}/revision/feature/x": (INFO, "feature/x", ""),
    f"{API}/tree/main": (TREE, "main", ""),
    f"{API}/tree/main/": (TREE, "main", ""),
    f"{API}/tree/main/a%20b/c": (TREE, "main", "a b/c"),
    f"{API}/tree/refs%2Fpr%2F1/sub": (TREE, "refs/pr/1", "sub"),
    f"{API}/tree/refs/pr/1/sub": (TREE, "refs/pr/1", "sub"),
    f"{API}/tree/refs/convert/parquet": (TREE, "refs/convert/parquet", ""),
    f"{API}/tree/feature%2Fx/sub": (TREE, "feature/x", "sub"),
    f"{API}/paths-info/main": (PATHS, "main", ""),
    f"{API}/paths-info/refs%2fpr%2f1": (PATHS, "refs/pr/1", ""),
    f"{API}/paths-info/refs/pr/1": (PATHS, "refs/pr/1", ""),
    f"/{REPO}/resolve/main/a/b.json": (FILE, "main", "a/b.json"),
    f"/{REPO}/resolve/refs%2Fpr%2F1/b.json": (FILE, "refs/pr/1", "b.json"),
    f"/{REPO}/resolve/refs/pr/1/b.json": (FILE, "refs/pr/1", "b.json"),
    f"/{REPO}/resolve/refs/b.json": (FILE, "refs", "b.json"),
    f"/{REPO}/raw/main/a%23b.md": (RAW, "main", "a#b.md"),
    f"/{REPO}/raw/refs/pr/12/b.md": (RAW, "refs/pr/12", "b.md"),
}  # fmt: skip


@pytest.mark.parametrize("path", KNOWN)
def test_an_address_is_read_escaped_or_not(path: str) -> None:
    view, revision, file = KNOWN[path]
    assert parse_hub_address(path) == HubAddress(view, REPO, revision, file)


def test_a_repository_without_an_organization_is_one_too() -> None:
    assert parse_hub_address("/gpt2/resolve/main/x").repo == "gpt2"
    assert parse_hub_address("/api/models/gpt2/revision/main").repo == "gpt2"


@pytest.mark.parametrize("kind", ["datasets", "spaces"])
@pytest.mark.parametrize(
    "rest", ["", "/squad", "/org/x", "/org/x/resolve/main/f", "/x/resolve/main/f", "/o/x/tree/main"]
)
@pytest.mark.parametrize("start", ["/", "/api/"])
def test_what_is_no_model_is_said_to_be_none(start: str, kind: str, rest: str) -> None:
    with pytest.raises(NoModel, match=kind):
        parse_hub_address(f"{start}{kind}{rest}")


@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/models", f"{API}/refs", f"{API}/xet-read-token/main", "/api/whoami-v2",
     f"{API}/tree/..%2f..", f"{API}/revision/a%0ab", f"/{REPO}/resolve/main/..%2fx", f"/{REPO}/blob/main/x"],
)  # fmt: skip
def test_anything_else_is_no_address(path: str) -> None:
    with pytest.raises(InvalidInput):
        parse_hub_address(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sub/a.json", "inline; filename*=UTF-8''a.json; filename=\"a.json\";"),
        ('q"\\;.md', "inline; filename*=UTF-8''q%22%5C%3B.md; filename=\"q__;.md\";"),
        ("ü 1.md", "inline; filename*=UTF-8''%C3%BC%201.md; filename=\"_ 1.md\";"),
    ],
)
def test_a_files_name_in_a_header_ends_no_quotes(path: str, expected: str) -> None:
    assert content_disposition("inline", path) == expected

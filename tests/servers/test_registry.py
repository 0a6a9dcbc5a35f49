"""docker-registry with each kind of authorization, tried with skopeo and with plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from tests.servers import skopeo
from tests.servers.fixtures import USERS
from tests.servers.layout import tiny_layout
from tests.servers.process import ServerFailed
from tests.servers.registry import Access, DockerRegistry, TokenAuthRegistry

pytestmark = pytest.mark.servers

FILES = {"weights/a.bin": bytes(range(256)) * 64, "config.json": b"{}"}


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Path, str]:
    directory = tmp_path / "layout"
    return directory, tiny_layout(directory, FILES)


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


def test_an_image_comes_back_as_it_was_sent(
    registry: DockerRegistry,
    layout: tuple[Path, str],
    unique_name: Callable[[str], str],
    tmp_path: Path,
) -> None:
    directory, digest = layout
    repository = unique_name("team/model")
    image = f"docker://{registry.host}/{repository}:v1"
    skopeo.copy(f"oci:{directory}:latest", image)
    skopeo.copy(image, f"oci:{tmp_path / 'back'}:v1")

    assert skopeo.inspect(image)["Digest"] == digest
    sent = {p.name: p.read_bytes() for p in (directory / "blobs/sha256").iterdir()}
    back = {p.name: p.read_bytes() for p in (tmp_path / "back/blobs/sha256").iterdir()}
    assert back == sent


def test_finished_requests_and_their_bytes_can_be_counted(
    registry: DockerRegistry,
    layout: tuple[Path, str],
    unique_name: Callable[[str], str],
    http: urllib3.PoolManager,
) -> None:
    directory, digest = layout
    repository = unique_name("counted")
    skopeo.copy(f"oci:{directory}:latest", f"docker://{registry.host}/{repository}:v1")
    layer = json.loads((directory / "blobs/sha256" / digest.split(":")[1]).read_text())["layers"][0]
    path = f"/v2/{repository}/blobs/{layer['digest']}"
    before = registry.accesses(path)
    answer = http.request("GET", registry.url + path, headers={"Range": "bytes=100-299"})

    assert answer.data == registry.blob_path(layer["digest"]).read_bytes()[100:300]
    assert registry.accesses(path)[len(before) :] == [Access("GET", path, 206, 200)]


def test_a_damaged_blob_is_served_damaged(
    registry: DockerRegistry,
    layout: tuple[Path, str],
    unique_name: Callable[[str], str],
    tmp_path: Path,
) -> None:
    directory, digest = layout
    image = f"docker://{registry.host}/{unique_name('damaged')}:v1"
    skopeo.copy(f"oci:{directory}:latest", image)
    manifest = json.loads((directory / "blobs/sha256" / digest.split(":")[1]).read_text())
    blob = registry.blob_path(manifest["layers"][0]["digest"])
    intact = blob.read_bytes()
    try:
        blob.write_bytes(intact[:-1] + b"!")
        with pytest.raises(ServerFailed, match="Digest did not match"):
            skopeo.copy(image, f"oci:{tmp_path / 'back'}:v1")
    finally:
        blob.write_bytes(intact)


def test_basic_authorization_wants_the_password(
    basic_registry: DockerRegistry, layout: tuple[Path, str], unique_name: Callable[[str], str]
) -> None:
    image = f"docker://{basic_registry.host}/{unique_name('private')}:v1"
    with pytest.raises(ServerFailed, match=r"(?i)unauthorized|authentication required"):
        skopeo.copy(f"oci:{layout[0]}:latest", image, "--dest-creds=alice:wrong")
    skopeo.copy(f"oci:{layout[0]}:latest", image, f"--dest-creds=alice:{USERS['alice']}")

    assert skopeo.inspect(image, f"--creds=alice:{USERS['alice']}")["Digest"] == layout[1]


def test_token_authorization_sends_clients_to_the_token_server(
    token_registry: TokenAuthRegistry, layout: tuple[Path, str], unique_name: Callable[[str], str]
) -> None:
    repository = unique_name("private")
    image = f"docker://{token_registry.host}/{repository}:v1"
    with pytest.raises(ServerFailed, match=r"(?i)unauthorized|authentication required"):
        skopeo.copy(f"oci:{layout[0]}:latest", image, "--dest-creds=alice:wrong")
    skopeo.copy(f"oci:{layout[0]}:latest", image, f"--dest-creds=alice:{USERS['alice']}")

    assert skopeo.inspect(image, f"--creds=bob:{USERS['bob']}")["Digest"] == layout[1]
    with pytest.raises(ServerFailed, match=r"(?i)denied|unauthorized|authentication required"):
        skopeo.inspect(image)
    asked = [r for r in token_registry.tokens.requests if any(repository in s for s in r.scopes)]
    assert {(r.user, r.granted) for r in asked} >= {
        ("alice", False),
        ("alice", True),
        ("bob", True),
        (None, True),
    }


def test_public_repositories_need_no_account(
    token_registry: TokenAuthRegistry, layout: tuple[Path, str], unique_name: Callable[[str], str]
) -> None:
    image = f"docker://{token_registry.host}/{unique_name('public/model')}:v1"
    skopeo.copy(f"oci:{layout[0]}:latest", image, f"--dest-creds=alice:{USERS['alice']}")

    assert skopeo.inspect(image)["Digest"] == layout[1]


def test_a_token_stops_working_when_its_life_is_over(http: urllib3.PoolManager) -> None:
    with TokenAuthRegistry(users=USERS, lifetime=0) as server:
        dead = server.tokens.issue("alice", ("repository:x:pull",))
        server.tokens.lifetime = 300
        alive = server.tokens.issue("alice", ("repository:x:pull",))

        def status(token: str) -> int:
            bearer = {"Authorization": f"Bearer {token}"}
            return http.request("GET", f"{server.url}/v2/x/tags/list", headers=bearer).status

        assert (status(dead), status(alive)) == (401, 404)


def test_an_identity_token_buys_an_access_token(
    token_registry: TokenAuthRegistry, http: urllib3.PoolManager
) -> None:
    identity = token_registry.tokens.identity_token("bob")
    form = {
        "grant_type": "refresh_token",
        "refresh_token": identity,
        "scope": "repository:x:pull",
        "service": "tests",
    }
    answer = http.request("POST", token_registry.tokens.realm, fields=form, encode_multipart=False)
    bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    assert http.request("GET", f"{token_registry.url}/v2/x/tags/list", headers=bearer).status == 404


def test_storage_outlives_the_server(layout: tuple[Path, str], tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    with DockerRegistry(storage=storage) as server:
        skopeo.copy(f"oci:{layout[0]}:latest", f"docker://{server.host}/kept:v1")
    with DockerRegistry(storage=storage, read_only=True) as server:
        assert skopeo.inspect(f"docker://{server.host}/kept:v1")["Digest"] == layout[1]
        with pytest.raises(ServerFailed, match=r"405|Method Not Allowed|not allowed|unsupported"):
            skopeo.copy(f"oci:{layout[0]}:latest", f"docker://{server.host}/new:v1")

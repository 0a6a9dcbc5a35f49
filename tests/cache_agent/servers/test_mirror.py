"""The mirror over real registries: what it serves from the store, what it fetches, what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_agent.daemon.servers import ServerOptions
from modelimage.digest import Digest
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import HttpAnswer, fetch
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.servers import skopeo
from tests.servers.layout import tiny_layout
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
LOOPBACK = ServerOptions(mirror=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"))


@pytest.fixture
def mirrored(tmp_root: Path) -> Iterator[ServersInProcess]:
    with ServersInProcess(tmp_root / "store", LOOPBACK) as servers:
        yield servers
    assert findings(tmp_root / "store") == []


@pytest.fixture
def own_registry() -> Iterator[DockerRegistry]:
    """A registry that the test may stop."""
    with DockerRegistry() as server:
        yield server


def blob(mirror: str, model: PublishedModel, digest: Digest, **headers: str) -> HttpAnswer:
    registry, _, repository = model.image.rpartition(":")[0].partition("/")
    return fetch(mirror, f"/v2/{repository}/blobs/{digest}?ns={registry}", headers=headers)


def test_every_blob_and_manifest_of_a_cached_image_without_its_registry(
    mirrored: ServersInProcess, own_registry: DockerRegistry
) -> None:
    model = publish_model(f"{own_registry.host}/team/model:v1")
    mirrored.pull(model.image)
    own_registry.__exit__()
    host, ns = mirrored.mirror, f"?ns={own_registry.host}"
    for digest, data in model.blobs.items():
        # The other manifests' config is the ModelPack one, which belongs to the same model.
        answer = fetch(host, f"/v2/team/model/blobs/{digest}{ns}")
        assert (answer.status, answer.body == data) == (200, True), digest
        assert answer.headers["docker-content-digest"] == str(digest)
        head = fetch(host, f"/v2/team/model/blobs/{digest}{ns}", method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, str(len(data)))
    for digest, data in model.manifests.items():
        assert fetch(host, f"/v2/team/model/manifests/{digest}{ns}").body == data
    tagged = fetch(host, f"/v2/team/model/manifests/v1{ns}")
    assert tagged.body in model.manifests.values()
    alias = own_registry.host.replace(":", "_")
    assert fetch(host, f"/v2/{alias}/team/model/manifests/v1").body == tagged.body


def test_ranges_of_a_layer_are_the_blob_s(
    mirrored: ServersInProcess, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    model = publish_model(f"{registry.host}/{unique_name('ranges')}:v1")
    mirrored.pull(model.image)
    data = model.blobs[model.weight_layer]
    size = len(data)
    for start, stop in [(0, 1), (511, 513), (100, 2_900_000), (size - 1024, size), (512, size)]:
        answer = blob(mirrored.mirror, model, model.weight_layer, Range=f"bytes={start}-{stop - 1}")
        assert (answer.status, answer.body) == (206, data[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    assert blob(mirrored.mirror, model, model.weight_layer, Range="bytes=-7").body == data[-7:]
    beyond = blob(mirrored.mirror, model, model.weight_layer, Range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    several = blob(mirrored.mirror, model, model.weight_layer, Range="bytes=0-1,5-6")
    assert (several.status, several.body == data) == (200, True)


def test_a_model_that_is_not_cached_is_pulled_while_it_is_served(
    mirrored: ServersInProcess, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    model = publish_model(f"{registry.host}/{unique_name('through')}:v1")
    repository = model.image.partition("/")[2].rpartition(":")[0]
    ns = f"?ns={registry.host}"
    for digest in model.manifests:
        fetch(mirrored.mirror, f"/v2/{repository}/manifests/{digest}{ns}")
    assert blob(mirrored.mirror, model, model.weight_layer).body == model.blobs[model.weight_layer]
    # The bytes came once: the store has them, and upstream gave that layer only to the store.
    path = f"/v2/{repository}/blobs/{model.weight_layer}"
    sent = [a.sent for a in registry.accesses(path) if a.method == "GET"]
    assert sum(sent) <= len(model.blobs[model.weight_layer])
    wait_until(lambda: mirrored.node.store.models.get(model.record.key), what="model")


def test_what_is_no_model_is_passed_through_and_not_kept(
    mirrored: ServersInProcess,
    registry: DockerRegistry,
    tmp_path: Path,
    unique_name: Callable[[str], str],
) -> None:
    name = unique_name("plain")
    tiny_layout(tmp_path / "layout", {"bin/tool": os.urandom(700_000)})
    skopeo.copy(f"oci:{tmp_path / 'layout'}:latest", f"docker://{registry.host}/{name}:v1")
    ns = f"?ns={registry.host}"
    manifest = json.loads(fetch(mirrored.mirror, f"/v2/{name}/manifests/v1{ns}").body)
    for described in (manifest["config"], *manifest["layers"]):
        digest = described["digest"]
        answer = fetch(mirrored.mirror, f"/v2/{name}/blobs/{digest}{ns}")
        assert answer.body == registry.blob_path(digest).read_bytes()
        part = fetch(
            mirrored.mirror, f"/v2/{name}/blobs/{digest}{ns}", headers={"Range": "bytes=5-9"}
        )
        assert (part.status, part.body) == (206, answer.body[5:10])
    assert not mirrored.node.manifest_cache.documents(f"{registry.host}/{name}")


def test_what_others_made_is_given_from_the_cache_once_it_was_pulled(
    mirrored: ServersInProcess, own_registry: DockerRegistry, tmp_path: Path
) -> None:
    files = {"models/config.json": b"{}", "models/model.safetensors": os.urandom(700_000)}
    tiny_layout(tmp_path / "layout", files)
    name = "team/modelcar"
    skopeo.copy(f"oci:{tmp_path / 'layout'}:latest", f"docker://{own_registry.host}/{name}:v1")
    ns = f"?ns={own_registry.host}"
    manifest = json.loads(fetch(mirrored.mirror, f"/v2/{name}/manifests/v1{ns}").body)
    described = [manifest["config"], *manifest["layers"]]
    paths = {each["digest"]: own_registry.blob_path(each["digest"]) for each in described}
    expected = {digest: path.read_bytes() for digest, path in paths.items()}
    mirrored.pull(f"{own_registry.host}/{name}:v1")
    own_registry.__exit__()
    assert json.loads(fetch(mirrored.mirror, f"/v2/{name}/manifests/v1{ns}").body) == manifest
    for digest, data in expected.items():
        assert fetch(mirrored.mirror, f"/v2/{name}/blobs/{digest}{ns}").body == data
    own_registry.__enter__()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed(mirrored: ServersInProcess, method: str) -> None:
    for path in ("/v2/", "/v2/a/b/blobs/uploads/", "/v2/reg.test/m/manifests/v1", "/x"):
        answer = fetch(mirrored.mirror, path, method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_registry_that_is_not_listed_is_never_connected_to(tmp_root: Path) -> None:
    with (
        DockerRegistry() as registry,
        ServersInProcess(
            tmp_root / "store", ServerOptions(mirror=ANY, registries=("reg.test",))
        ) as servers,
    ):
        answer = fetch(servers.mirror, f"/v2/m/manifests/v1?ns={registry.host}")
        assert answer.status == 404
        assert registry.accesses() == []


def test_absent_and_unreachable_are_told_apart(
    mirrored: ServersInProcess, own_registry: DockerRegistry
) -> None:
    path = f"/v2/no/such/manifests/v1?ns={own_registry.host}"
    absent = fetch(mirrored.mirror, path)
    assert (absent.status, json.loads(absent.body)["errors"][0]["code"]) == (
        404,
        "MANIFEST_UNKNOWN",
    )
    own_registry.__exit__()
    assert fetch(mirrored.mirror, path).status == 502


def test_the_ping_says_what_it_is(mirrored: ServersInProcess) -> None:
    answer = fetch(mirrored.mirror, "/v2/")
    assert answer.status == 200
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"

"""Tenants by models by ways in: who gets what through the mirror, with real registries deciding.

Every model is cached on the node first, with its owner's credentials, so each answer is about a hit.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import IncompleteRead
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from cache_agent.access.callers import Caller
from cache_agent.access.upstream import UpstreamRegistries
from cache_agent.daemon.servers import ServerOptions
from cache_agent.fetch.values import PullRequest
from modelimage.access import Access
from modelimage.allowed_registries import AllowedRegistries
from modelimage.digest import Digest
from modelimage.record import Record, RecordFile
from modelimage.reference import parse_registry
from modelimage.registry.credentials import BasicCredential, ExplicitCredential
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import HttpAnswer, fetch
from tests.cache_agent.servers.published import (
    PublishedModel,
    model_files,
    publish,
    publish_model,
    records_of,
)
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry, TokenAuthRegistry

pytestmark = pytest.mark.servers
ALLOWED = ("127.0.0.1:*", "*.0.0.1:*")
USERS = {"alice": "wonderland", "bob": "builder"}


@dataclass(frozen=True)
class Tenancy:
    """Two registries with basic authorization, each of one tenant, and a public one: a model in each, all cached."""

    servers: ServersInProcess
    registries: dict[str, DockerRegistry]
    models: dict[str, PublishedModel]


def credential(user: str) -> BasicCredential:
    return BasicCredential(user, USERS[user])


def header(user: str | None, password: str | None = None) -> dict[str, str]:
    if user is None:
        return {}
    pair = f"{user}:{password or USERS[user]}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def access_of(image: str, user: str) -> Access:
    return Access(ExplicitCredential(parse_registry(image).registry, credential(user)))


def pull_as(servers: ServersInProcess, image: str, user: str | None) -> None:
    reference = parse_registry(image)
    caller = Caller(credential(user) if user else None)
    upstream = UpstreamRegistries(Access(), AllowedRegistries(ALLOWED))
    request = PullRequest(reference, reader=upstream.repository(reference, caller))
    assert servers.node.pull(request).result() is not None


@pytest.fixture(scope="module")
def tenancy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenancy]:
    root = tmp_path_factory.mktemp("tenants") / "store"
    options = ServerOptions(mirror=ANY, registries=ALLOWED)
    with (
        DockerRegistry(users={"alice": USERS["alice"]}) as of_alice,
        DockerRegistry(users={"bob": USERS["bob"]}) as of_bob,
        DockerRegistry() as public,
        ServersInProcess(root, options) as servers,
    ):
        registries = {"alice": of_alice, "bob": of_bob, "public": public}
        models = {}
        for seed, (owner, registry) in enumerate(registries.items()):
            image = f"{registry.host}/team/model:v1"
            access = None if owner == "public" else access_of(image, owner)
            models[owner] = publish_model(image, seed=100 + seed, access=access)
            pull_as(servers, image, None if owner == "public" else owner)
        yield Tenancy(servers, registries, models)
    assert findings(root) == []


def ask(tenancy: Tenancy, owner: str, path: str, headers: dict[str, str]) -> HttpAnswer:
    registry = tenancy.registries[owner].host
    return fetch(tenancy.servers.mirror, f"/v2/team/model/{path}?ns={registry}", headers=headers)


CALLERS = {
    "nobody": header(None),
    "alice": header("alice"),
    "bob": header("bob"),
    "alice with a wrong password": header("alice", "nope"),
    "a forged token": {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."},
}


@pytest.mark.parametrize("owner", ["alice", "bob", "public"])
@pytest.mark.parametrize("caller", list(CALLERS))
def test_a_tenant_gets_the_own_and_the_public_models_only(
    tenancy: Tenancy, owner: str, caller: str
) -> None:
    model = tenancy.models[owner]
    may = owner in ("public", caller)
    digests = {
        "the weight layer": f"blobs/{model.weight_layer}",
        "the record": f"blobs/{_record_layer(model)}",
        "a config": f"blobs/{_config(model)}",
        "a manifest by digest": f"manifests/{next(iter(model.manifests))}",
        "a manifest by tag": "manifests/v1",
    }
    for what, path in digests.items():
        answer = ask(tenancy, owner, path, CALLERS[caller])
        if may:
            assert answer.status == 200, what
        else:
            assert answer.status == (401 if caller == "nobody" else 404), what
            assert not any(data in answer.body for data in model.files.values())


@pytest.mark.parametrize("thief", ["alice", "bob", "nobody"])
@pytest.mark.parametrize("owner", ["alice", "bob"])
def test_a_blob_is_not_given_out_under_another_repository_s_name(
    tenancy: Tenancy, owner: str, thief: str
) -> None:
    """Who may read some repository asks there for a digest that this node has from elsewhere."""
    if thief == owner:
        return
    home = "public" if thief == "nobody" else thief
    for digest in tenancy.models[owner].blobs:
        if digest in tenancy.models[home].blobs:
            continue
        answer = ask(tenancy, home, f"blobs/{digest}", CALLERS[thief])
        assert answer.status == 404
    for digest in tenancy.models[owner].manifests:
        assert ask(tenancy, home, f"manifests/{digest}", CALLERS[thief]).status == 404


def test_a_runtime_without_credentials_is_told_how_upstream_asks(tenancy: Tenancy) -> None:
    answer = ask(tenancy, "alice", "manifests/v1", {})
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="tests"'


def test_a_forged_record_gets_no_other_tenant_s_bytes(tmp_root: Path) -> None:
    """Bob publishes an image whose record claims the sha256 and chunks of Alice's cached file."""
    secret = model_files(7)
    with (
        DockerRegistry(users={"alice": USERS["alice"]}) as of_alice,
        DockerRegistry(users={"bob": USERS["bob"]}) as of_bob,
        ServersInProcess(
            tmp_root / "store", ServerOptions(mirror=ANY, registries=ALLOWED)
        ) as servers,
    ):
        image = f"{of_alice.host}/team/model:v1"
        record, blobs = records_of(secret)
        publish(image, [record], blobs, secret, access_of(image, "alice"))
        pull_as(servers, image, "alice")

        decoy = {**model_files(8), "model.safetensors": bytes(len(secret["model.safetensors"]))}
        honest, decoys = records_of(decoy)
        forged = _claiming(honest, record)
        stolen = f"{of_bob.host}/team/stolen:v1"
        publish(stolen, [forged], decoys, decoy, access_of(stolen, "bob"))
        layer = _layer_of(forged, "model.safetensors")
        ns = f"?ns={of_bob.host}"
        for digest in publish(stolen, [forged], decoys, decoy, access_of(stolen, "bob")).manifests:
            fetch(servers.mirror, f"/v2/team/stolen/manifests/{digest}{ns}", headers=header("bob"))
        for target in (layer, _layer_of(record, "model.safetensors")):
            path = f"/v2/team/stolen/blobs/{target}{ns}"
            assert secret["model.safetensors"][:64] not in _given(servers.mirror, path, "bob")


def test_the_same_layer_in_a_repository_of_one_s_own_is_given_from_the_cache(
    tmp_root: Path,
) -> None:
    files = model_files(9)
    record, blobs = records_of(files)
    with (
        DockerRegistry(users={"alice": USERS["alice"]}) as of_alice,
        DockerRegistry(users={"bob": USERS["bob"]}) as of_bob,
        ServersInProcess(
            tmp_root / "store", ServerOptions(mirror=ANY, registries=ALLOWED)
        ) as servers,
    ):
        for registry, user in ((of_alice, "alice"), (of_bob, "bob")):
            image = f"{registry.host}/team/model:v1"
            model = publish(image, [record], blobs, files, access_of(image, user))
        pull_as(servers, f"{of_alice.host}/team/model:v1", "alice")
        path = f"/v2/team/model/blobs/{model.weight_layer}?ns={of_bob.host}"
        for _ in range(2):
            assert (
                fetch(servers.mirror, path, headers=header("bob")).body == blobs[model.weight_layer]
            )
        layer = f"/v2/team/model/blobs/{model.weight_layer}"
        # A registry notes an answer after it was given.
        sent = wait_until(lambda: _sent(of_bob, layer), what="note of an answer")
        assert sent == [1]


def test_a_token_that_is_relayed_opens_what_upstream_says(tmp_root: Path) -> None:
    with (
        TokenAuthRegistry(users=USERS) as registry,
        ServersInProcess(
            tmp_root / "store", ServerOptions(mirror=ANY, registries=ALLOWED)
        ) as servers,
    ):
        for name in ("team/model", "public/model"):
            image = f"{registry.host}/{name}:v1"
            publish_model(image, seed=5, access=access_of(image, "alice"))
        ns = f"?ns={registry.host}"
        assert fetch(servers.mirror, f"/v2/public/model/manifests/v1{ns}").status == 200
        path = f"/v2/team/model/manifests/v1{ns}"
        refused = fetch(servers.mirror, path)
        assert refused.status == 401
        assert registry.tokens.realm in refused.headers["www-authenticate"]
        url = f"{registry.tokens.realm}?service=tests&scope=repository:team/model:pull"
        with urlopen(Request(url, headers=header("alice"))) as answer:  # noqa: S310
            token = json.load(answer)["token"]
        given = fetch(servers.mirror, path, headers={"Authorization": f"Bearer {token}"})
        assert given.status == 200
        with urlopen(url) as answer:  # noqa: S310
            nobody = json.load(answer)["token"]
        assert (
            fetch(servers.mirror, path, headers={"Authorization": f"Bearer {nobody}"}).status == 404
        )


def _sent(registry: DockerRegistry, path: str) -> list[int]:
    """The sizes of what was given there."""
    every = registry.accesses(path)
    return [each.sent for each in every if each.method == "GET" and each.status < 400]


def _given(mirror: str, path: str, user: str) -> bytes:
    """All bytes that were sent, also of an answer that was broken off."""
    try:
        return fetch(mirror, path, headers=header(user)).body
    except IncompleteRead as error:
        return error.partial


def _record_layer(model: PublishedModel) -> Digest:
    return next(d for d, data in model.blobs.items() if data.startswith(b"weightyard.json"))


def _config(model: PublishedModel) -> Digest:
    return next(d for d, data in model.blobs.items() if b'"rootfs"' in data)


def _layer_of(record: Record, path: str) -> Digest:
    return next(file.layer for file in record.files if file.path == path)


def _claiming(record: Record, victim: Record) -> Record:
    """The record with the victim's identity of the weight file."""
    theirs = {file.path: file for file in victim.files}

    def forged(file: RecordFile) -> RecordFile:
        if file.path != "model.safetensors":
            return file
        stolen = theirs[file.path]
        return replace(file, digest=stolen.digest, chunks=stolen.chunks, size=stolen.size)

    return replace(record, files=tuple(map(forged, record.files)))

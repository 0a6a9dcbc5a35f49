"""Tenants by models by servers: every model is cached on the node, and each server gives it to its readers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.client import IncompleteRead
from pathlib import Path

import grpc
import pytest

from cache_agent.daemon.servers import ServerOptions
from cache_agent.servers.csi.driver import CsiOptions
from tests.cache_agent.mounter.mounters import NamespacedMounter, volume
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.kubelet import Kubelet
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.cache_agent.servers.test_tenants import ALLOWED, USERS, access_of, header, pull_as
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
WEIGHTS = "model.safetensors"
OWNERS = ("alice", "bob", "public")
# What a caller shows: user and password, and which tenant's token.
CALLERS: Mapping[str, tuple[tuple[str, str] | None, str | None]] = {
    "nobody": (None, None),
    "alice": (("alice", USERS["alice"]), "alice"),
    "bob": (("bob", USERS["bob"]), "bob"),
    "who guesses alice's password": (("alice", "nope"), "forged"),
    "bob as alice": (("alice", USERS["bob"]), None),
}


@dataclass(frozen=True)
class Node:
    """An agent with three servers; a registry and a private repository of the Hub for each tenant, and public ones."""

    servers: ServersInProcess
    kubelet: Kubelet
    mounter: NamespacedMounter
    registries: Mapping[str, DockerRegistry]
    models: Mapping[str, PublishedModel]
    tokens: Mapping[str, str]

    def mirror(self, owner: str, caller: str) -> bytes | None:
        """The weights through the mirror; None when they are refused."""
        shown, model = CALLERS[caller][0], self.models[owner]
        path = f"/v2/team/model/blobs/{model.weight_layer}?ns={self.registries[owner].host}"
        answer = fetch(self.servers.mirror, path, headers=header(*shown) if shown else {})
        assert answer.status == 200 or answer.status in (401, 404)
        return answer.body[512 : 512 + len(model.files[WEIGHTS])] if answer.status == 200 else None

    def hub(self, owner: str, caller: str) -> bytes | None:
        """The weights through the Hub endpoint."""
        token = self.tokens.get(CALLERS[caller][1] or "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        path = f"/org/{owner}/resolve/main/{WEIGHTS}"
        answer = fetch(str(self.servers.servers.hub), path, headers=headers)
        assert answer.status == 200 or answer.status in (401, 404)
        return answer.body if answer.status == 200 else None

    def csi(self, owner: str, caller: str) -> bytes | None:
        """The weights in a pod."""
        shown, pod = CALLERS[caller][0], f"pod-{owner}-{caller.replace(' ', '-')}"
        secrets = {"username": shown[0], "password": shown[1]} if shown else {}
        code, target = grpc.StatusCode.OK, volume(self.kubelet.directory, pod)
        try:
            self.kubelet.publish(pod, self.models[owner].image, secrets=secrets)
        except grpc.RpcError as error:
            code = error.code()
        if code is not grpc.StatusCode.OK:
            assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND)
            assert target not in {each.target for each in self.mounter.mounts()}
            return None
        given = (self.mounter.inside(target) / WEIGHTS).read_bytes()
        self.kubelet.unpublish(pod, target)
        return given


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Node]:
    root = tmp_path_factory.mktemp("matrix")
    tokens = {"alice": hub.token(), "bob": hub.token(), "forged": "hf_forged"}
    with ExitStack() as stack:
        kubelet = stack.enter_context(Kubelet(root / "kubelet"))
        mounter = stack.enter_context(NamespacedMounter(root / "store", kubelet.directory))
        registries = {
            owner: stack.enter_context(DockerRegistry(users=_users(owner))) for owner in OWNERS
        }
        csi = CsiOptions(kubelet.directory, mounter.socket, "node-1")
        options = ServerOptions(
            mirror=ANY, hub=ANY, csi=csi, registries=ALLOWED, hub_upstream=hub.url
        )
        servers = stack.enter_context(ServersInProcess(root / "store", options))
        models = {}
        for seed, owner in enumerate(OWNERS):
            image = f"{registries[owner].host}/team/model:v1"
            access = access_of(image, owner) if owner in USERS else None
            models[owner] = model = publish_model(image, seed=300 + seed, access=access)
            pull_as(servers, image, owner if owner in USERS else None)
            _add(hub, owner, model, root / f"hub-{owner}", tokens)
        yield Node(servers, kubelet, mounter, registries, models, tokens)
        assert mounter.mounts() == []
    assert findings(root / "store") == []


def _users(owner: str) -> dict[str, str] | None:
    return {owner: USERS[owner]} if owner in USERS else None


def _add(
    hub: Hub, owner: str, model: PublishedModel, source: Path, tokens: Mapping[str, str]
) -> None:
    source.mkdir()
    (source / WEIGHTS).write_bytes(model.files[WEIGHTS])
    readers = (tokens[owner],) if owner in tokens else ()
    hub.add(f"org/{owner}", source, private=owner in tokens, readers=readers)


SERVERS: Mapping[str, Callable[[Node, str, str], bytes | None]] = {
    "mirror": Node.mirror,
    "hub": Node.hub,
    "csi": Node.csi,
}


# Repositories of bob that list the sha256 of alice's weights, and what the Hub has under that name.
FOREIGN = ("nothing", "something else", "nothing beside a README")


@pytest.fixture(scope="module")
def thieves(node: Node, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    found = {}
    for number, what in enumerate(FOREIGN):
        source = tmp_path_factory.mktemp("thief")
        (source / "README.md").write_text("hello")
        stolen = node.models["alice"].files[WEIGHTS]
        (source / WEIGHTS).write_bytes(bytes(len(stolen)))
        found[what] = name = f"org/thief-{number}"
        commit = hub.add(name, source, private=number == 0, readers=(node.tokens["bob"],))
        files = dict(hub.repositories[name].commits[commit])
        files[WEIGHTS] = replace(files[WEIGHTS], sha256=hashlib.sha256(stolen).hexdigest())
        hub.repositories[name] = replace(hub.repositories[name], commits={commit: files})
        if what != "something else":
            hub.cdn.missing.add((name, WEIGHTS))
    return found


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("caller", ["bob", "alice", "nobody"])
def test_listing_a_foreign_sha256_opens_nothing(
    node: Node, thieves: Mapping[str, str], what: str, caller: str
) -> None:
    token = node.tokens.get(CALLERS[caller][1] or "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    stolen = node.models["alice"].files[WEIGHTS]
    # A proof for another file of the repository is none for this one.
    fetch(
        str(node.servers.servers.hub), f"/{thieves[what]}/resolve/main/README.md", headers=headers
    )
    for extra in ({}, {"Range": "bytes=0-99"}, {"Range": f"bytes={len(stolen) - 50}-"}):
        path = f"/{thieves[what]}/resolve/main/{WEIGHTS}"
        given = body_of(str(node.servers.servers.hub), path, {**headers, **extra})
        # What the Hub itself has there may be given; here that is zeros.
        assert not given.strip(b"\0")


def body_of(host: str, path: str, headers: Mapping[str, str]) -> bytes:
    """What is given of a file, whole or not; nothing for a refusal."""
    try:
        answer = fetch(host, path, headers=headers)
    except IncompleteRead as error:
        return error.partial
    return answer.body if answer.status < 400 else b""


@pytest.mark.parametrize("server", list(SERVERS))
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("caller", list(CALLERS))
def test_a_cached_model_is_given_to_its_readers_alone(
    node: Node, server: str, owner: str, caller: str
) -> None:
    given = SERVERS[server](node, owner, caller)
    if server == "hub" and CALLERS[caller][1] == "forged":
        # The Hub refuses a token that isn't one, even for what is public.
        assert given is None or owner == "public"
    elif owner in ("public", caller):
        assert given == node.models[owner].files[WEIGHTS]
    else:
        assert given is None

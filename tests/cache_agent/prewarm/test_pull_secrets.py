"""Pull secrets from an API server or a directory, in front of a registry that demands them; kubeconfigs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.prewarm.pull_secrets import ClusterSecrets, PullCredentials, SecretFiles
from modelimage.access import Access
from modelimage.errors import NotFound
from modelimage.registry.credentials import BasicCredential, ExplicitCredential
from tests.cache_agent.nodes import NodeFactory
from tests.cache_agent.prewarm.reconciling import desired, keeping
from tests.cache_agent.prewarm.test_reconciler import run
from tests.cache_agent.servers.published import publish_model
from tests.servers.fixtures import USERS
from tests.servers.registry import DockerRegistry
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

(NAME, PASSWORD), *_ = USERS.items()


def docker_config(registry: str, password: str) -> str:
    auth = base64.b64encode(f"{NAME}:{password}".encode()).decode()
    return json.dumps({"auths": {registry: {"auth": auth}}})


@pytest.mark.servers
def test_a_pull_with_a_secret_of_the_cluster(
    open_node: NodeFactory, basic_registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    host = basic_registry.host
    image = f"{host}/{unique_name('secret')}:v1"
    credential = ExplicitCredential(host, BasicCredential(NAME, PASSWORD))
    model = publish_model(image, access=Access(credentials=credential))
    server = FakeApi()
    texts = {"right": docker_config(host, PASSWORD), "wrong": docker_config(host, "x"),
             "other": docker_config("reg.test", PASSWORD)}  # fmt: skip
    for name, text in texts.items():
        data = {".dockerconfigjson": base64.b64encode(text.encode()).decode()}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": "wy"},
        }
        server.create({**secret, "data": data})

    async def test() -> None:
        node = open_node()
        http = HttpApi(server)
        async with (
            http,
            KubeClient(http.connection(), role="agent") as api,
            keeping(node, open_node._reader) as at,
        ):
            at.reconciler.credentials = PullCredentials(Access(), ClusterSecrets(api, "wy"))
            reasons = {"wrong": "AccessDenied", "other": "InvalidInput", "none": "NotFound"}
            for name, reason in reasons.items():
                at.reconciler.want([desired(name, model.image, pull_secret=name)])
                failed = await at.reaches(name, "Failed", reason)
                assert failed.message
                assert not node.store.models.all()
                at.reconciler.want([])  # so that the next is asked at once
            at.reconciler.want([desired("right", model.image, pull_secret="right")])
            open_node.now += 3600
            at.reconciler.wake()
            await at.reaches("right", "Ready")

    run(test())


def test_secrets_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".dockerconfigjson").write_text("{}")
    assert asyncio.run(SecretFiles(tmp_path).read("s")) == {".dockerconfigjson": "{}"}
    for directory in (tmp_path / "none", None):
        with pytest.raises(NotFound, match="secret"):
            asyncio.run(SecretFiles(directory).read("s"))

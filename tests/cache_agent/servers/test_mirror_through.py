"""Pull-through: what a runtime gets of a model while the node is still fetching it."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path

import pytest

from cache_agent.daemon.servers import ServerOptions
from modelimage.record import CHUNK_SIZE
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.published import model_files, publish, records_of
from tests.servers.faulty_registry import FaultyRegistry, HeldBack
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
LOOPBACK = ServerOptions(mirror=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"))


def test_chunks_are_passed_on_while_later_ones_have_not_come(
    tmp_root: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    files = model_files(81, CHUNK_SIZE + 2_000_000)
    record, blobs = records_of(files)
    name = unique_name("early")
    model = publish(f"{registry.host}/{name}:v1", [record], blobs, files)
    later = HeldBack(CHUNK_SIZE)
    with (
        FaultyRegistry(registry.host, later) as upstream,
        ServersInProcess(tmp_root / "store", LOOPBACK) as servers,
    ):
        ns = f"?ns={upstream.host}"
        for digest in model.manifests:
            fetch(servers.mirror, f"/v2/{name}/manifests/{digest}{ns}")
        client = http.client.HTTPConnection(servers.mirror)
        client.request("GET", f"/v2/{name}/blobs/{model.weight_layer}{ns}")
        answer = client.getresponse()
        expected = blobs[model.weight_layer]
        # The tar header and the whole first chunk, though the second one is held back.
        early = answer.read(512 + CHUNK_SIZE)
        assert early == expected[: 512 + CHUNK_SIZE]
        assert servers.node.store.models.all() == []
        later.let_go.set()
        assert early + answer.read() == expected
        client.close()
        wait_until(lambda: servers.node.store.models.get(record.key), what="model")
        asked = [each for each in upstream.seen if each.path.endswith(str(model.weight_layer))]
        assert [each.headers.get("Range") for each in asked if each.method == "GET"] == [
            f"bytes=512-{CHUNK_SIZE + 511}", f"bytes={CHUNK_SIZE + 512}-{CHUNK_SIZE + 2_000_511}",
        ]  # fmt: skip
    assert findings(tmp_root / "store") == []

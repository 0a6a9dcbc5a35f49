"""Real agents in front of a real registry: many cold nodes cost it one copy, and a killed one holds nobody up."""

from __future__ import annotations

import json
import os
import signal
import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cache_agent.api.wire import PullBody, PullProgress
from cache_agent.peers.peer_client import TlsFiles
from modelimage.access import Access
from modelimage.record import CHUNK_SIZE
from modelimage.reference import RegistryReference, parse_image
from modelimage.registry.credentials import DockerConfig
from tests.cache_agent.daemon.test_agent import push
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.peers.certificates import Authority
from tests.cache_agent.peers.cluster import ClusterNode, cluster
from tests.servers.fixtures import USERS
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers

SLOW_ORIGIN = {"fetch": {"bandwidth_per_source": "40MB"}}


WEIGHTS = (2 * CHUNK_SIZE, CHUNK_SIZE + 1000, 9000)


def publish(
    registry: DockerRegistry, name: str, seed: int, weights: Sequence[int] = WEIGHTS,
    access: Access | None = None,
) -> tuple[str, dict[str, bytes]]:  # fmt: skip
    """An image of these weights (four chunks) and a few small files."""
    image, _, contents = simple_image(weights=weights, seed=seed)
    reference = parse_image(f"{registry.host}/{name}:v1")
    assert isinstance(reference, RegistryReference)
    push(image, reference, access)
    return str(reference), contents


def sent(registry: DockerRegistry, image: str) -> int:
    """Bytes of layers that the registry says it sent, record and configs included."""
    reference = parse_image(image)
    assert isinstance(reference, RegistryReference)
    prefix = f"/v2/{reference.repository}/blobs/"
    return sum(each.sent for each in registry.accesses(prefix) if each.method == "GET")


def kill_in_the_middle(node: ClusterNode, image: str) -> None:
    """SIGKILL it once some megabytes have come."""
    for progress in node.client.pull(PullBody(image=image)):
        if isinstance(progress, PullProgress) and progress.done > CHUNK_SIZE // 4:
            os.kill(node.process.pid, signal.SIGKILL)
            return


def test_cold_nodes_cost_the_origin_one_copy_and_survive_a_killed_peer(
    tmp_root: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    with cluster(tmp_root, 4, settings=SLOW_ORIGIN) as nodes:
        nodes.start(*range(4))

        image, contents = publish(registry, unique_name("peers/first"), 1)
        size = sum(map(len, contents.values()))
        for done in nodes.pull_everywhere(image):
            assert files_of(Path(done.path)) == contents
        assert sent(registry, image) <= 1.1 * size
        gave = sum(node.counted("weightyard_peer_sent_bytes_total") for node in nodes.nodes)
        took = sum(node.done[0].tiers.get("peer", 0) for node in nodes.nodes)
        assert gave == took
        assert took >= 2.9 * size * 0.99
        assert all(node.counted("weightyard_peers_ejected_total") == 0 for node in nodes.nodes)

        image, contents = publish(registry, unique_name("peers/second"), 2)
        victim = nodes.nodes.pop()
        thread = threading.Thread(target=_ignoring_the_end, args=(victim, image))
        thread.start()
        for done in nodes.pull_everywhere(image):
            assert files_of(Path(done.path)) == contents
        thread.join()
        assert not victim.process.is_running()
        # What the victim had fetched and not passed on was fetched again.
        assert sent(registry, image) <= 2 * size

        [late] = nodes.start(3)
        before = sent(registry, image)
        assert files_of(Path(late.pull(image).path)) == contents
        assert sent(registry, image) - before < 0.1 * size
        nodes.check()


def _ignoring_the_end(victim: ClusterNode, image: str) -> None:
    try:
        kill_in_the_middle(victim, image)
    except Exception:  # noqa: BLE001 - the answer breaks off with the process
        assert not victim.process.is_running()


def test_a_private_model_passes_between_agents_over_mutual_tls(
    tmp_root: Path, basic_registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    """The third has a certificate of another authority: nobody talks to it, and it pulls from the registry."""
    auth = b64encode(":".join(next(iter(USERS.items()))).encode()).decode()
    config = json.dumps({"auths": {basic_registry.host: {"auth": auth}}})
    ours, others = Authority(tmp_root / "ca"), Authority(tmp_root / "other-ca")
    with cluster(tmp_root, 3, docker_config=config) as nodes:
        [first] = nodes.start(0, tls=_settings(ours.issue("node-0")))
        [second] = nodes.start(1, tls=_settings(ours.issue("node-1")))
        [stranger] = nodes.start(2, tls=_settings(others.issue("node-2")))
        access = Access(credentials=DockerConfig.parse(config.encode(), what="a test's config"))
        image, contents = publish(basic_registry, unique_name("p/private"), 3, [200_000], access)
        size = first.pull(image).tiers["registry"]
        assert files_of(Path(second.pull(image).path)) == contents
        assert second.done[0].tiers == {"peer": size}
        assert files_of(Path(stranger.pull(image).path)) == contents
        assert stranger.done[0].tiers == {"registry": size}
        assert first.counted("weightyard_peer_sent_bytes_total") == size
        nodes.check()


def _settings(files: TlsFiles) -> dict[str, str]:
    return {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}

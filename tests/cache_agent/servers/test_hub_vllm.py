"""A real vLLM that downloads its model from the endpoint: the weights come from the node's disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_agent.daemon.servers import ServerOptions
from tests.builder.building import build_here
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry
from tests.servers.vllm import VllmServer

pytestmark = [pytest.mark.servers, pytest.mark.vllm, pytest.mark.slow]


class VllmFromHub(VllmServer):
    """vLLM told a repository's name, with HF_ENDPOINT as a user sets it."""

    def __init__(self, repository: str, endpoint: str) -> None:
        super().__init__(Path(repository))
        self._endpoint = endpoint

    def _environment(self, home: Path) -> dict[str, str]:
        settings = {**super()._environment(home), "HF_ENDPOINT": self._endpoint}
        del settings["HF_HUB_OFFLINE"]
        return settings


def test_vllm_serves_a_model_that_it_got_from_the_endpoint(
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    smollm2: Path,
    tmp_root: Path,
) -> None:
    image = f"{registry.host}/{unique_name('hub')}:v1"
    build_here(smollm2, image, tmp_root / "scratch")
    with Hub() as hub:
        hub.add("org/smol", smollm2)
        options = ServerOptions(hub=ANY, registries=("127.0.0.1:*",), hub_upstream=hub.url)
        with ServersInProcess(tmp_root / "store", options) as servers:
            servers.pull(image)
            with VllmFromHub("org/smol", f"http://{servers.servers.hub}") as server:
                assert "Paris" in server.complete("The capital of France is")
        weights = [each for each in hub.cdn.requests if each.method == "GET"]
        # The Hub was asked who may; it gave the small files, and none of the weights.
        assert sum(each.sent for each in weights) < 10_000_000

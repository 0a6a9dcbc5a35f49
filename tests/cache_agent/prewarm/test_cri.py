"""Container images pulled ahead through a real containerd, by the interface that kubelet uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cache_agent.prewarm.cri import Cri
from modelimage.errors import NotFound, Unreachable, WeightyardError
from tests.cache_agent.servers.published import publish_model
from tests.servers.containerd import Containerd
from tests.servers.registry import DockerRegistry


def failing(call: Callable[[], Awaitable[object]]) -> WeightyardError:
    async def test() -> None:
        await call()

    with pytest.raises(WeightyardError) as raised:
        asyncio.run(test())
    return raised.value


@pytest.mark.servers
def test_a_real_runtime_pulls_what_it_lacks(
    registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    image = publish_model(f"{registry.host}/{unique_name('runtime')}:v1").image

    async def test(runtime: Cri) -> None:
        assert not await runtime.has(image)
        await runtime.pull(image, {"username": "u", "password": "p"})
        assert await runtime.has(image)

    with Containerd(cri=True) as containerd:
        runtime = Cri(Path(containerd.address))
        asyncio.run(test(runtime))
        absent = failing(lambda: runtime.pull(image + "x", {}))
    assert isinstance(absent, NotFound)


def test_a_runtime_that_is_not_there_is_told(tmp_root: Path) -> None:
    error = failing(lambda: Cri(tmp_root / "none.sock").has("a:b"))
    assert isinstance(error, Unreachable)
    assert "may open its socket" in (error.hint or "")

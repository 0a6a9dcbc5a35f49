"""A command that fails ends with the same code and kind of error, whether an agent has the cache or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.cache_agent.servers.agent_process import AgentProcess
from tests.servers.registry import DockerRegistry
from tests.weightyard.local import empty_store

pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Site:
    """A layout with an image, a registry that has it too, and two caches, of which an agent has the first."""

    layout: Path
    registry: str
    roots: tuple[Path, Path]

    @property
    def image(self) -> str:
        return f"{self.registry}/team/model:v1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    scratch = tmp_path_factory.mktemp("exits")
    build_here(single(scratch / "source"), f"oci:{scratch / 'built'}:v1", scratch)
    roots = scratch / "first/store", scratch / "second/store"
    for root in roots:
        root.parent.mkdir()
    empty_store(roots[1])
    agent = AgentProcess(roots[0])
    with DockerRegistry() as registry:
        build_here(scratch / "source", f"{registry.host}/team/model:v1", scratch)
        agent.start()
        try:
            yield Site(scratch / "built", registry.host, roots)
        finally:
            agent.stop()


def largest(layout: Path) -> Path:
    return max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)


def flip(layout: Path) -> None:
    data = bytearray(largest(layout).read_bytes())
    data[len(data) // 2] ^= 1
    largest(layout).write_bytes(data)


def shorten(layout: Path) -> None:
    largest(layout).write_bytes(largest(layout).read_bytes()[:-1])


def lose(layout: Path) -> None:
    largest(layout).unlink()


def garble(layout: Path) -> None:
    (layout / "index.json").write_text("{")


DAMAGE: Final[dict[str, tuple[Callable[[Path], None], int]]] = {
    "a flipped bit": (flip, 5),
    "a short blob": (shorten, 5),
    "a lost blob": (lose, 3),
    "a garbled index": (garble, 15),
}
# A command line, with IMAGE and REGISTRY to be filled in, and the code of the table.
FAILURES: Final[dict[tuple[str, ...], int]] = {
    ("pull", "REGISTRY/team/model:absent"): 3,
    ("pull", "REGISTRY/team/absent:v1"): 3,
    ("pull", f"REGISTRY/team/model@sha256:{'0' * 64}"): 3,
    ("pull", "oci:/nowhere/at/all:v1"): 3,
    ("pull", "127.0.0.1:1/team/model:v1"): 11,
    ("pull", "UPPER/../case:v1"): 2,
    ("pull", "IMAGE", "--variant", "int4"): 8,
    ("pin", "REGISTRY/team/absent:v1"): 3,
    ("rm", "REGISTRY/team/absent:v1"): 3,
    ("warm", "REGISTRY/team/absent:v1"): 3,
    ("explain", "REGISTRY/team/absent:v1"): 3,
}


def outcomes(
    site: Site, capsys: pytest.CaptureFixture[str], *arguments: str
) -> list[tuple[int, str]]:
    """The exit code and the kind of error with the agent, and without."""
    found = []
    for root in site.roots:
        outcome = weightyard_here(capsys, "--json", *arguments, "--root", root)
        found.append((outcome.code, json.loads(outcome.err.splitlines()[-1])["kind"]))
    return found


@pytest.mark.parametrize("arguments", FAILURES, ids=" ".join)
def test_a_failing_command_ends_alike(
    arguments: tuple[str, ...], site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [
        each.replace("REGISTRY", site.registry).replace("IMAGE", site.image) for each in arguments
    ]
    with_agent, without = outcomes(site, capsys, *filled)
    assert with_agent == without
    assert with_agent[0] == FAILURES[arguments]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_image_ends_a_pull_alike(
    name: str, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, code = DAMAGE[name]
    layout = Path(shutil.copytree(site.layout, tmp_path / "layout"))
    damage(layout)
    with_agent, without = outcomes(site, capsys, "pull", f"oci:{layout}:v1")
    assert with_agent == without
    assert with_agent[0] == code


def test_a_model_in_use_is_removed_by_neither(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    for root in site.roots:
        for command in ("pull", "pin"):
            assert weightyard_here(capsys, command, site.image, "--root", root).code == 0
    with_agent, without = outcomes(site, capsys, "rm", site.image)
    assert with_agent == without == (17, "InUse")
    for root in site.roots:
        assert weightyard_here(capsys, "rm", "--unpin", site.image, "--root", root).code == 0

"""containerd, podman and skopeo pull a model image through the mirror of a real agent while its registry is away."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cache_agent.nodes import UNDISTURBED
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.servers import skopeo
from tests.servers.containerd import Containerd
from tests.servers.podman import Podman
from tests.servers.process import ServerProcess, child_environment, run, wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers


@contextmanager
def running_agent(root: Path, *arguments: str) -> Iterator[dict[str, str]]:
    """A real `weightyard agent`; yields where its servers answer."""
    command = [sys.executable, "-m", "weightyard.cli", "agent", "--json", "--root", str(root)]
    log = root.with_suffix(".log")
    with ServerProcess(
        [*command, *arguments],
        log=log,
        environment=child_environment(root.parent, **UNDISTURBED),
    ) as process:
        line = process.wait_for(
            lambda: next((x for x in process.log_text().splitlines() if '"ready"' in x), None),
            what="ready",
        )
        yield json.loads(str(line))["servers"]


def weightyard(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "weightyard.cli", *arguments, "--root", str(root)]
    return run(command, environment=child_environment(root.parent))


def cached_without_registry(root: Path) -> PublishedModel:
    """A model in the cache at `root` whose registry has gone."""
    with DockerRegistry() as registry:
        model = publish_model(f"{registry.host}/team/model:v1", seed=11)
        weightyard(root, "pull", model.image)
    return model


def files_under(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "weightyard.json"
    }


def test_containerd_pulls_a_cached_image_as_the_agent_configured_it(
    containerd: Containerd, tmp_root: Path
) -> None:
    model = cached_without_registry(tmp_root / "store")
    host = model.image.partition("/")[0]
    certs = tmp_root / "certs.d"
    arguments = ("--mirror", "0", "--registry", host, "--configure-containerd", str(certs))
    with running_agent(tmp_root / "store", *arguments):
        wait_until((certs / host / "hosts.toml").exists, what="the configuration of containerd")
        containerd.pull(model.image, hosts_dir=certs)
        with containerd.mounted(model.image) as root:
            assert (root / "models").readlink() == Path()
            assert files_under(root) == model.files
    containerd.remove(model.image)


def test_podman_pulls_a_cached_image(podman: Podman, tmp_root: Path) -> None:
    model = cached_without_registry(tmp_root / "store")
    host = model.image.partition("/")[0]
    with running_agent(tmp_root / "store", "--mirror", "0", "--registry", host) as servers:
        mirror = f"{servers['mirror']}/{host.replace(':', '_')}/team/model:v1"
        podman.pull(mirror)
        with podman.mounted(mirror) as root:
            assert files_under(root) == model.files


def test_skopeo_copies_every_byte_of_a_cached_image(tmp_root: Path) -> None:
    model = cached_without_registry(tmp_root / "store")
    host = model.image.partition("/")[0]
    with running_agent(tmp_root / "store", "--mirror", "0", "--registry", host) as servers:
        mirror = f"{servers['mirror']}/{host.replace(':', '_')}/team/model:v1"
        skopeo.copy(f"docker://{mirror}", f"oci:{tmp_root / 'copy'}:v1", "--all")
    copied = {each.name: each for each in (tmp_root / "copy/blobs/sha256").iterdir()}
    for digest, data in {**model.blobs, **model.manifests}.items():
        assert copied[digest.hex].read_bytes() == data


def test_an_agent_that_is_started_again_serves_without_asking_anyone(tmp_root: Path) -> None:
    model = cached_without_registry(tmp_root / "store")
    host = model.image.partition("/")[0]
    arguments = ("--mirror", "0", "--registry", host)
    for _ in range(2):
        with running_agent(tmp_root / "store", *arguments) as servers:
            mirror = f"{servers['mirror']}/{host.replace(':', '_')}/team/model:v1"
            assert skopeo.inspect(f"docker://{mirror}", "--raw")["schemaVersion"] == 2
    assert "0 findings" in weightyard(tmp_root / "store", "check")

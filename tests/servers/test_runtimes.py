"""containerd and podman, each pulling a tiny image and showing its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from tests.servers import skopeo
from tests.servers.containerd import Containerd
from tests.servers.layout import tiny_layout
from tests.servers.podman import Podman
from tests.servers.process import ServerFailed
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers

FILES = {"weights/a.bin": bytes(range(256)) * 64, "config.json": b"{}"}


@pytest.fixture
def image(registry: DockerRegistry, tmp_path: Path, unique_name: Callable[[str], str]) -> str:
    """The reference of a tiny image that the registry holds."""
    tiny_layout(tmp_path / "layout", FILES)
    reference = f"{registry.host}/{unique_name('runtimes')}:v1"
    skopeo.copy(f"oci:{tmp_path / 'layout'}:latest", f"docker://{reference}")
    return reference


def files_under(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_containerd_pulls_unpacks_and_forgets(containerd: Containerd, image: str) -> None:
    containerd.pull(image)
    with containerd.mounted(image) as root:
        assert files_under(root) == FILES
    containerd.remove(image)
    assert image not in containerd.images()


def test_containerd_pulls_through_a_mirror(
    containerd: Containerd, image: str, registry: DockerRegistry, tmp_root: Path
) -> None:
    hosts = tmp_root / "registry.example"
    hosts.mkdir()
    (hosts / "hosts.toml").write_text(
        f'server = "http://127.0.0.1:1"\n[host."{registry.url}"]\n  capabilities = ["pull", "resolve"]\n'
    )
    elsewhere = image.replace(registry.host, "registry.example")
    containerd.pull(elsewhere, hosts_dir=tmp_root)
    with containerd.mounted(elsewhere) as root:
        assert files_under(root) == FILES


def test_containerd_says_what_it_could_not_pull(
    containerd: Containerd, registry: DockerRegistry
) -> None:
    with pytest.raises(ServerFailed, match="not found"):
        containerd.pull(f"{registry.host}/nothing:v1")


def test_podman_pulls_and_mounts(podman: Podman, image: str) -> None:
    podman.pull(image)
    assert image in podman.images()
    with podman.mounted(image) as root:
        assert files_under(root) == FILES


def test_podman_answers_the_docker_sdk(podman: Podman, image: str) -> None:
    podman.pull(image)
    with podman.docker_api() as url:
        client = docker.DockerClient(base_url=url, timeout=None)  # type: ignore[arg-type]
        try:
            assert image in {tag for found in client.images.list() for tag in found.tags}
        finally:
            client.close()

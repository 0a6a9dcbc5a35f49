"""The chart's own agent pod, run from the built image by podman: a CSI publish shows a model to another container.

The binds are the node's: they outlive the agent's and the mounter's deaths, and go when the volume is unpublished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cache_agent.mounter.mounters import mounts_below, shared
from tests.cache_agent.servers.kubelet import Kubelet
from tests.cache_agent.servers.published import publish_model
from tests.chart.charting import render
from tests.images.building import CONFINED, Workshop
from tests.images.pods import NodePod
from tests.servers.ports import free_port
from tests.servers.process import ServerFailed
from tests.servers.registry import DockerRegistry

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.xdist_group("images")]
POD = "0f9a6f0e-1111-4222-8333-444455556666"


@pytest.fixture
def node(
    workshop: Workshop, agent_image: str, registry: DockerRegistry, tmp_root: Path
) -> Iterator[tuple[NodePod, Kubelet, int]]:
    """The chart's agent pod running on this machine, its kubelet, and the port of its probes."""
    repository, _, tag = agent_image.rpartition(":")
    observe = free_port()
    with ExitStack() as stack:
        directory = tmp_root / "k"
        directory.mkdir()
        stack.enter_context(shared(directory))
        kubelet = stack.enter_context(Kubelet(directory))
        values = {
            "controller": {"enabled": False},
            "agent": {
                "image": {"repository": repository, "tag": tag}, "hostPath": str(tmp_root / "s"),
                "observePort": observe, "mirror": {"port": free_port()}, "peers": {"port": free_port()},
                "csi": {"kubeletPath": str(directory)}, "registries": [registry.host],
                "config": {"min_free": "0", "prewarm": {"kubernetes": False}},
            },
        }  # fmt: skip
        folder = tmp_root / f"pod{observe}"
        folder.mkdir()
        fields = {"spec.nodeName": "node", "status.podIP": "127.0.0.1"}
        pod = NodePod(workshop, render(values), folder, fields)
        stack.callback(pod.stop)
        pod.start()
        pod.wait_until_ready(observe)
        yield pod, kubelet, observe


def test_a_published_model_outlives_agent_and_mounter(
    workshop: Workshop,
    node: tuple[NodePod, Kubelet, int],
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    pod, kubelet, observe = node
    model = publish_model(f"{registry.host}/{unique_name('images/csi')}:v1", seed=7)
    assert kubelet.register().name == "cache.weightyard.dev"
    target = Path(kubelet.publish(POD, model.image))
    with tenant(workshop, target, pod.spec["containers"][0]["image"]) as reads:
        assert reads() == model.files["config.json"]
        for container in ("agent", "mounter"):
            pod.kill(container)
            assert reads() == model.files["config.json"]
            pod.restart(container)
            pod.wait_until_ready(observe)
            assert reads() == model.files["config.json"]
    assert "writable" not in outcome_of_writing(target)
    workshop.wait_for(lambda: listens(pod), *pod.started, what="mounter")
    assert POD in pod.execute("agent", "weightyard", "--json", "lease", "ls")
    (mounted,) = mounts_below(kubelet.directory)
    assert (mounted.target, mounted.options >= {"ro", "nosuid", "nodev", "noexec"}) == (
        str(target),
        True,
    )
    kubelet.unpublish(POD, str(target))
    assert mounts_below(kubelet.directory) == []
    assert not target.exists()
    pod.execute("agent", "weightyard", "check")


@contextmanager
def tenant(workshop: Workshop, target: Path, image: str) -> Iterator[Callable[[], bytes]]:
    """Another pod's container, restricted, with the volume; a call reads a file of it."""
    name = f"tenant-{target.parents[3].name}"
    workshop.podman(
        "run", "--detach", "--name", name, *CONFINED, "--user=1000", f"--volume={target}:/model:ro",
        "--entrypoint=python", image, "-c", "import signal; signal.pause()",
    )  # fmt: skip
    script = "import sys; sys.stdout.write(open('/model/config.json').read())"
    try:
        yield lambda: workshop.podman("exec", name, "python", "-c", script).encode()
    finally:
        workshop.podman("rm", "--force", "--time=1", name)


def outcome_of_writing(target: Path) -> str:
    """What root of the node is told when it writes into a volume."""
    try:
        (target / "new").write_bytes(b"")
    except OSError as error:
        return str(error)
    return "writable"


def listens(pod: NodePod) -> bool:
    """What the mounter's probe says."""
    (mounter,) = [each for each in pod.spec["containers"] if each["name"] == "mounter"]
    try:
        pod.execute("mounter", *mounter["livenessProbe"]["exec"]["command"])
    except ServerFailed:
        return False
    return True

"""A copy that is killed again and again, as CI jobs are, arrives all the same and sends little twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelimage.layout import Layout
from modelimage.reference import RegistryReference
from tests.modelimage.conformance import blob_content, described, manifest_of
from tests.servers.faulty_registry import FaultyRegistry
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry

LAYERS = 20
LAYER_BYTES = 4 << 20
KILLS = 10
AT_ONCE = 4


def image_of_many_layers(directory: Path) -> int:
    """Returns the bytes of all its blobs."""
    layout = Layout(directory)
    blobs = [bytes([number]) * LAYER_BYTES for number in range(LAYERS)]
    for blob in (*blobs, b"{}"):
        layout.put_blob(blob_content(blob))
    descriptor, manifest = manifest_of(*map(described, blobs), config=described(b"{}"))
    layout.put_manifest(descriptor, manifest, "v1")
    return LAYERS * LAYER_BYTES + 2


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("sent_signal", [signal.SIGKILL, signal.SIGTERM])
def test_ten_kills_cost_at_most_what_was_on_its_way(
    sent_signal: signal.Signals,
    tmp_path: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    """At ten points of a push: what was finished is never sent again, and SIGTERM loses nothing at all."""
    size = image_of_many_layers(tmp_path / "layout")
    name = unique_name("killed/model")
    with FaultyRegistry(registry.host) as proxy:
        image = f"{RegistryReference(proxy.host, name)}:v1"
        command = [
            sys.executable,
            "-m",
            "weightyard.cli",
            "copy",
            f"oci:{tmp_path}/layout:v1",
            image,
        ]
        environment = {**os.environ, "HOME": str(tmp_path)}
        for kill in range(1, KILLS + 1):
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            target = max(kill * size // (KILLS + 2), proxy.uploaded + LAYER_BYTES // 2)
            wait_until(
                lambda process=process, target=target: (
                    proxy.uploaded >= target or process.poll() is not None
                ),
                what="progress",
            )
            process.send_signal(sent_signal)
            code = process.wait()
            assert code in (130, -signal.SIGKILL, 0)
        subprocess.run(command, env=environment, check=True, capture_output=True)
        sent = proxy.uploaded
    lost = KILLS * AT_ONCE * LAYER_BYTES if sent_signal is signal.SIGKILL else 0
    assert sent <= size + lost
    back = [sys.executable, "-m", "weightyard.cli", "copy", f"{registry.host}/{name}:v1",
            f"oci:{tmp_path}/back:v1"]  # fmt: skip
    subprocess.run(back, env=environment, check=True, capture_output=True)
    there, here = Layout(tmp_path / "layout"), Layout(tmp_path / "back")
    assert here.resolve("v1").digest == there.resolve("v1").digest
    assert dict(here.blobs()) == dict(there.blobs())

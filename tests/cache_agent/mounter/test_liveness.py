"""What the mounter's liveness probe sees, by the command of the chart itself."""

from __future__ import annotations

import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache_agent.mounter.binder import Binder
from cache_agent.mounter.liveness import LivenessFile
from cache_agent.mounter.server import Mounter
from tests.chart.charting import pod_specs, render

CHARTED = "/run/weightyard/mounter.alive"


def is_alive(path: Path) -> bool:
    """What kubelet finds when it runs the chart's command, with another path."""
    (probe,) = [
        each["livenessProbe"]["exec"]["command"]
        for _, spec in pod_specs(render())
        for each in spec["containers"]
        if each["name"] == "mounter"
    ]
    assert CHARTED in probe[-1]
    command = [each.replace(CHARTED, str(path)) for each in probe]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_probe_tells_a_mounter_that_works_from_a_stuck_one(tmp_path: Path) -> None:
    path = tmp_path / "mounter.alive"
    assert not is_alive(path)
    file = LivenessFile(path)
    assert is_alive(path)
    long_ago = int(time.clock_gettime(time.CLOCK_BOOTTIME)) - 61
    path.write_text(f"{long_ago}\n")
    assert not is_alive(path)
    file.beat()
    assert is_alive(path)


def test_a_link_in_the_agents_directory_is_not_followed(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "mounter.alive"
    precious.write_text("kept")
    path.symlink_to(precious)
    LivenessFile(path).beat()
    assert precious.read_text() == "kept"
    assert not path.is_symlink()


class Full:
    """No thread is free."""

    def acquire(self) -> None:
        raise InterruptedError("waited for a thread")


def test_it_beats_while_nobody_connects_and_not_while_all_threads_are_stuck(tmp_path: Path) -> None:
    mounter = Mounter(Binder([tmp_path / "models"], tmp_path / "kubelet"), 0)
    with socket.socket(socket.AF_UNIX) as server, ThreadPoolExecutor(1) as pool:
        server.bind(str(tmp_path / "s"))
        server.listen()
        server.settimeout(0.001)
        free = mounter._free._value
        mounter._accept(server, pool)  # returns, so that `serve` beats
        assert mounter._free._value == free
        mounter._free = Full()  # type: ignore[assignment]
        with pytest.raises(InterruptedError, match="waited for a thread"):
            mounter._accept(server, pool)

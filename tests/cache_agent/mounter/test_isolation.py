"""What the privileged part has given up, as the kernel tells of the running process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cache_agent.mounter.mounters import NamespacedMounter, fake_model, volume
from tests.servers.process import program

pytestmark = pytest.mark.servers
# CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH
KEPT = 1 << 21 | 1 << 2


@pytest.fixture
def kubelet(tmp_root: Path) -> Path:
    path = tmp_root / "kubelet"
    path.mkdir()
    return path


def status(task: Path) -> dict[str, str]:
    """/proc/<pid>/status of a thread."""
    lines = (task / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_has_no_network_and_two_capabilities_and_still_binds(
    tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    # As the agent's own directory is: another user's, closed to everyone else.
    os.chown(tmp_root / "store", 65532, 65532)
    (tmp_root / "store").chmod(0o700)
    with NamespacedMounter(tmp_root / "store", kubelet) as mounter:
        assert mounter.client.bind(key, target)
        assert len(mounter.mounts()) == 1
        tasks = list((mounter.proc / "task").iterdir())
        # The main thread and at least the one that carried the order out.
        assert len(tasks) > 1
        for task in tasks:
            known = status(task)
            for sets in ("CapEff", "CapPrm", "CapBnd"):
                assert int(known[sets], 16) == KEPT, sets
            assert int(known["CapInh"], 16) == int(known["CapAmb"], 16) == 0
            assert known["NoNewPrivs"] == "1"
            assert (task / "ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
        assert mounter.client.unbind(target)


def test_nothing_is_reached_from_its_network(tmp_root: Path, kubelet: Path) -> None:
    (tmp_root / "store/models").mkdir(parents=True)
    connect = (
        "import socket, sys\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "except OSError as error: print(error.errno)\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        NamespacedMounter(tmp_root / "store", kubelet) as mounter,
    ):
        inside = f"--net={mounter.proc}/ns/net"
        command = [program("nsenter"), inside, sys.executable, "-c", connect]
        port = str(server.getsockname()[1])
        said = subprocess.run([*command, port], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "101"  # ENETUNREACH: not even loopback is up


def test_without_the_right_to_mount_it_does_not_start(tmp_root: Path) -> None:
    arguments = ["--root", str(tmp_root), "--socket", str(tmp_root / "m.sock"), "--user", "0"]
    unprivileged = [program("setpriv"), "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    ended = subprocess.run(
        [*unprivileged, sys.executable, "-m", "weightyard.mounter", *arguments],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "the mounter can't start: [Errno 1]" in ended.stderr
    assert not (tmp_root / "m.sock").exists()


def test_it_loads_nothing_of_the_project_but_itself() -> None:
    listing = (
        "import sys, weightyard.mounter\n"
        "print(*sorted(n for n in sys.modules if n.split('.')[0] not in sys.stdlib_module_names))"
    )
    said = subprocess.run(
        [sys.executable, "-c", listing], check=True, capture_output=True, text=True
    ).stdout.split()
    ours = {name for name in said if name.startswith(("cache_agent", "modelimage"))}
    assert {name for name in ours if not name.startswith("cache_agent.mounter")} == {
        "cache_agent", "cache_agent.net", "cache_agent.net.sockets",
        "modelimage", "modelimage.bounds", "modelimage.digest", "modelimage.errors", "modelimage.log_text",
    }  # fmt: skip
    assert "grpc" not in said
    assert "aiohttp" not in said

"""Facts of a node, from a root directory made like one, and from this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path, PurePosixPath

import pytest

from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry
from weightyard.cli import main
from weightyard.commands.doctor import guess_role
from weightyard.doctor import disk_trial
from weightyard.doctor import parse as parsing
from weightyard.doctor.disk_trial import try_disk
from weightyard.doctor.facts import Containerd, HostFacts, Kubelet, Nic
from weightyard.doctor.gather import ProbePaths, gather
from weightyard.doctor.node_checks import MachineRole

MOUNTS = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/root rw
30 22 8:2 / /var/lib/kubelet rw,relatime shared:5 - xfs /dev/sdb rw
31 22 8:3 / /var/lib/a\040b ro,relatime master:7 - btrfs /dev/sdc rw
32 22 0:9 / /var/lib/kubelet rw,relatime - tmpfs tmpfs ro
malformed line
""".strip()


@pytest.mark.parametrize(
    ("path", "filesystem", "read_only", "shared"),
    [
        ("/srv", "ext4", False, False),
        ("/var/lib/a b/c", "btrfs", True, True),
        ("/var/lib/kubelet/pods", "tmpfs", True, False),
        ("/var/lib/kubeletter", "ext4", False, False),
    ],
)
def test_the_mount_that_a_path_is_on(
    path: str, filesystem: str, read_only: bool, shared: bool
) -> None:
    found = parsing.mount_of(MOUNTS, PurePosixPath(path))
    assert found is not None
    assert (found.filesystem, found.read_only, found.shared) == (filesystem, read_only, shared)


@pytest.mark.parametrize(
    ("text", "config_path", "mirrors"),
    [
        ('version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/c"', "/etc/c", ()),
        ("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/c'", "/etc/c", ()),
        ('[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = []', None, ("docker.io",)),
        ("version = 2", None, ()),
        ("plugins = 1", None, ()),
    ],
)  # fmt: skip
def test_registry_settings_of_old_and_new_containerd(
    text: str, config_path: str | None, mirrors: tuple[str, ...]
) -> None:
    assert parsing.containerd_of("/c", text) == Containerd(
        configuration="/c", config_path=config_path, inline_mirrors=mirrors
    )


def test_a_configuration_that_cannot_be_read_is_said() -> None:
    assert "isn't TOML" in (parsing.containerd_of("/c", "[").problem or "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("evictionHard: {nodefs.available: 5%}", {"nodefs.available": "5%"}),
        ("kind: KubeletConfiguration", {}),
        ("[1", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_thresholds_of_kubelet(text: str, found: dict[str, str]) -> None:
    assert parsing.eviction_hard(text) == found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A node's root, as a pod sees it."""
    root = tmp_path / "host"
    write(root / "sys/fs/selinux/enforce", "1")
    write(root / "sys/module/apparmor/parameters/enabled", "Y\n")
    for name, state, speed in (
        ("eth0", "up", "25000\n"),
        ("eth1", "down", "1000\n"),
        ("eth2", "unknown", "-1\n"),
    ):
        write(root / f"sys/class/net/{name}/operstate", state)
        write(root / f"sys/class/net/{name}/speed", speed)
        (root / f"sys/class/net/{name}/device").mkdir()
    write(root / "sys/class/net/veth1/operstate", "up")
    write(
        root / "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed",
    )
    (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    write(root / "var/lib/rancher/k3s/agent/etc/containerd/config.toml", "version = 2")
    write(tmp_path / "kubelet/config.yaml", "evictionHard: {nodefs.available: 1Gi}")
    (tmp_path / "kubelet/pods").mkdir()
    return root  # fmt: skip


def test_facts_of_a_node(host: Path, tmp_path: Path) -> None:
    facts = gather(ProbePaths(tmp_path / "not/yet", tmp_path / "kubelet", host, trial=1 << 20))
    assert (facts.selinux, facts.apparmor) == ("enforcing", True)
    assert facts.nics == (Nic(name="eth0", rate=25_000_000_000), Nic(name="eth2"))
    assert (facts.gpus.driver, facts.gpus.count) == ("570.124.06", 1)
    assert facts.containerd.configuration == "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
    expected = Kubelet(
        path=str(tmp_path / "kubelet"), found=True, pods=True, shared=facts.kubelet.shared,
        configuration=str(tmp_path / "kubelet/config.yaml"), eviction_hard={"nodefs.available": "1Gi"},
    )  # fmt: skip
    assert facts.kubelet == expected
    assert facts.disk.nodefs is True
    assert facts.disk.total >= facts.disk.free > 0
    assert facts.disk.hard_links is True
    assert (facts.disk.read_rate or 0) > 0
    assert (facts.disk.write_rate or 0) > 0
    assert not (tmp_path / "not").exists()
    assert HostFacts.model_validate_json(facts.model_dump_json()) == facts


def test_nothing_is_known_of_an_empty_root(tmp_path: Path) -> None:
    facts = gather(ProbePaths(tmp_path, tmp_path / "none", tmp_path))
    assert not facts.kubelet.found
    assert (facts.containerd, facts.nics, facts.selinux) == (Containerd(), (), None)
    assert facts.gpus.count == 0


class HourAhead(LoopbackServer):
    """A server whose clock is an hour ahead, and that refuses whoever asks."""

    class HANDLER(Handler):
        def do_HEAD(self) -> None:
            self.answer(401)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + 3600, usegmt=True)


def test_the_api_servers_clock_is_compared(tmp_path: Path) -> None:
    with HourAhead() as server:

        def an_hour() -> bool:
            offset = gather(ProbePaths(tmp_path, tmp_path, tmp_path, api=server.url)).clock.offset
            return offset == pytest.approx(3600, abs=3)

        wait_until(an_hour, what="answer that came at once")
    assert (
        gather(ProbePaths(tmp_path, tmp_path, tmp_path, api="http://127.0.0.1:1")).clock.offset
        is None
    )


def test_a_full_disk_is_not_tried(tmp_path: Path) -> None:
    assert "free" in (try_disk(tmp_path, 1 << 60).problem or "")


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert "No such file" in (try_disk(tmp_path / "gone", 1).problem or "")


def test_a_filesystem_without_hard_links_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(disk_trial.os, "link", refused)
    trial = try_disk(tmp_path, 0)
    assert (trial.hard_links, trial.write_rate, trial.problem) == (False, None, None)
    assert list(tmp_path.iterdir()) == []


def test_rates_are_bytes_per_second(tmp_path: Path) -> None:
    ticks = iter([0.0, 2.0, 10.0, 11.0])
    trial = try_disk(tmp_path, 1000, clock=lambda: next(ticks))
    assert (trial.write_rate, trial.read_rate) == (500.0, 1000.0)


def test_the_command_judges_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", "--laptop", "--root", str(tmp_path), "--kubelet", str(tmp_path / "none")]
    assert main(["--json", *words, "--disk-trial", "1MB", "--min-free", "0"]) == 0
    told = {
        each["check"]: each["level"] for each in json.loads(capsys.readouterr().out)["findings"]
    }
    assert (told["hard links"], told["free space"]) == ("ok", "ok")
    assert main([*words, "--disk-trial", "0", "--min-free", "100%"]) == 20
    shown = capsys.readouterr()
    assert "do: Free space" in shown.out
    assert "1 check failed" in shown.err  # fmt: skip


def test_the_command_prints_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--json", "doctor", "--facts", "--root", str(tmp_path), "--disk-trial", "0"]
    assert main(words) == 0
    facts = HostFacts.model_validate_json(capsys.readouterr().out)
    assert facts.disk.path == str(tmp_path)


@pytest.mark.parametrize(
    ("environ", "kubelet", "role"),
    [
        ({}, False, MachineRole.LAPTOP), ({"CI": "true"}, False, MachineRole.BUILDER),
        ({"CI": "true"}, True, MachineRole.NODE), ({"CI": ""}, False, MachineRole.LAPTOP),
    ],
)  # fmt: skip
def test_what_a_machine_is_for_is_guessed(
    environ: dict[str, str], kubelet: bool, role: MachineRole
) -> None:
    assert guess_role(environ, kubelet=kubelet) is role


@pytest.mark.parametrize("role", MachineRole)
def test_a_role_can_be_told(
    role: MachineRole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", f"--{role}", "--root", str(tmp_path), "--kubelet", str(tmp_path / "none")]
    code = main(["--json", *words, "--disk-trial", "0", "--min-free", "0"])
    checks = {each["check"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert ("kubelet directory" in checks, "vLLM" in checks, "extras" in checks) == (
        role is MachineRole.NODE, role is MachineRole.LAPTOP, role is MachineRole.BUILDER
    )  # fmt: skip
    # This machine is no node: kubelet's directory isn't there.
    assert (code == 20) == (role is MachineRole.NODE)


@pytest.mark.servers
def test_registries_are_asked_as_this_user(
    registry: DockerRegistry, basic_registry: DockerRegistry, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    image = f"{unique_name('doctor/model')}:v1"
    words = ["doctor", "--builder", "--root", str(tmp_path), "--disk-trial", "0", "--min-free", "0"]
    absent, locked, nobody = (
        f"{host}/{image}" for host in (registry.host, basic_registry.host, "127.0.0.1:9")
    )
    assert main(["--json", *words, absent, locked, nobody]) == 20
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found[f"image {absent}"]["level"] == "ok"
    assert "has no such image" in found[f"image {absent}"]["seen"]
    for image in (locked, nobody):
        assert found[f"image {image}"]["level"] == "fail"
        assert found[f"image {image}"]["advice"]
    assert main([*words, "not an image"]) == 2

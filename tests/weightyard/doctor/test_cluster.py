"""`weightyard doctor --cluster` through kubectl: what the API server says, pods on nodes, and nothing left behind."""

from __future__ import annotations

import json

import pytest

from tests.weightyard.doctor.fakecluster import FakeCluster, InProcess
from tests.weightyard.doctor.sound import EXPECTED, NODE, node, ours, program
from tests.workspace.controller.living import point_kubectl_at
from weightyard.cli import main
from weightyard.commands import doctor as command
from weightyard.doctor.facts import HostFacts
from weightyard.doctor.pods import PodProbe, Probing, manifest
from weightyard.kubectl import Kubectl, refused

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PROBE = PodProbe(
    "weightyard", "registry.example/agent:1", "/var/lib/weightyard", "/var/lib/kubelet", 1 << 20, 5
)


def sound(name: str) -> HostFacts | str | None:
    return NODE.model_copy(update={"node": name})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """What the command finds."""
    made = FakeCluster(sound, [node("gpu-1"), node("gpu-2")])
    made.nodes.append({**node("cpu-1"), "metadata": {"name": "cpu-1", "labels": {}}})
    for each in EXPECTED.crds.values():
        made.documents[f"{CRDS}/{each['metadata']['name']}"] = dict(each)
    monkeypatch.setattr(command, "kubectl", lambda *options: InProcess(made))
    return made


def findings(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], str]:
    """Levels by node and check."""
    told = json.loads(capsys.readouterr().out)["findings"]
    return {(each["where"], each["check"]): each["level"] for each in told}


def test_a_sound_cluster_passes_through_kubectl(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster:
        monkeypatch.setattr(command, "kubectl", lambda *options: Kubectl())
        point_kubectl_at(cluster.url, monkeypatch)
        assert main(["--json", "doctor", "--cluster"]) == 0
    found = findings(capsys)
    assert set(found.values()) == {"ok"}
    assert {where for where, _ in found} == {"", "gpu-1", "gpu-2"}
    assert [pod["spec"]["nodeName"] for pod in cluster.started] == ["gpu-1", "gpu-2"]
    assert cluster.pods == {}


def test_every_node_when_no_label_is_asked_for(cluster: FakeCluster) -> None:
    main(["doctor", "--cluster", "--selector", ""])
    assert len(cluster.started) == 3


def test_no_pods_when_none_are_wanted(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--cluster", "--no-pods"]) == 0
    assert cluster.started == []
    assert "gpu-1" not in capsys.readouterr().out


def test_an_installation_that_is_not_well_is_told(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    apps, kinds = "/apis/apps/v1/namespaces/weightyard", "/apis/weightyard.dev/v1alpha1"
    cluster.documents |= {
        f"{apps}/deployments": {"items": [program("Deployment", "weightyard-controller", 1, 1)]},
        f"{apps}/daemonsets": {"items": [program("DaemonSet", "weightyard-agent", 1, 2)]},
        f"{kinds}/nodecaches": {"items": [ours("NodeCache", "gpu-1", "Unknown")]},
        f"{kinds}/workspaces": {"items": [ours("Workspace", "chat", "False")]},
        f"{kinds}/cachedmodels": {"items": [ours("CachedModel", "chat")]},
    }  # fmt: skip
    assert main(["--json", "doctor", "--cluster", "--no-pods"]) == 20
    found = findings(capsys)
    assert [found["", each] for each in ("programs", "node caches", "models")] == [
        "fail", "fail", "warn",
    ]  # fmt: skip


def test_a_bad_node_is_named(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    bad = NODE.disk.model_copy(update={"hard_links": False})
    cluster.node = lambda name: NODE.model_copy(update={"disk": bad}) if name == "gpu-2" else NODE
    assert main(["doctor", "--cluster"]) == 20
    shown = capsys.readouterr()
    (line,) = [each for each in shown.out.splitlines() if "fail" in each]
    assert line.startswith("gpu-2")
    assert "1 check failed" in shown.err


@pytest.mark.parametrize(
    ("runs_by", "level"),
    [({"imagefs.available": "0.1%"}, "ok"), ({"imagefs.available": "95%"}, "fail"), (None, "ok")],
)
def test_what_kubelet_runs_by_counts_more_than_its_file(
    cluster: FakeCluster,
    capsys: pytest.CaptureFixture[str],
    runs_by: dict[str, str] | None,
    level: str,
) -> None:
    """Its configuration may lie anywhere; some callers may not ask it."""
    files = {"imagefs.available": "15%" if runs_by is None else "50%"}
    kubelet = NODE.kubelet.model_copy(update={"eviction_hard": files})
    cluster.node = lambda name: NODE.model_copy(update={"node": name, "kubelet": kubelet})
    if runs_by is not None:
        for name in ("gpu-1", "gpu-2"):
            document = {"kubeletconfig": {"evictionHard": runs_by}}
            cluster.documents[f"/api/v1/nodes/{name}/proxy/configz"] = document
    main(["--json", "doctor", "--cluster"])
    assert findings(capsys)["gpu-1", "free space"] == level


@pytest.mark.parametrize(
    ("told", "says"), [("the disk is gone", "the disk is gone"), (None, "MountVolume.SetUp failed")]
)
def test_a_pod_that_ends_badly_or_never_says_why(
    cluster: FakeCluster, told: str | None, says: str
) -> None:
    cluster.node = lambda name: told if name == "gpu-1" else NODE
    ticks = iter(range(100))
    probing = Probing(
        InProcess(cluster),
        PROBE,
        "abc",
        clock=lambda: float(next(ticks)),
        sleep=lambda seconds: None,
    )
    found = probing.gather(["gpu-1", "gpu-2"])
    assert found["gpu-2"] == NODE
    assert says in str(found["gpu-1"])
    assert cluster.pods == {}


def test_pods_are_removed_when_the_run_breaks(cluster: FakeCluster) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    cluster.node = lambda name: None
    with pytest.raises(KeyboardInterrupt):
        Probing(InProcess(cluster), PROBE, "abc", sleep=interrupted).gather(["gpu-1", "gpu-2"])
    assert len(cluster.started) == 2
    assert cluster.pods == {}


def test_a_killed_runs_pods_are_removed_by_the_next(cluster: FakeCluster) -> None:
    left = manifest(PROBE, "gpu-1", "weightyard-doctor-old-0")
    cluster.pods["weightyard-doctor-old-0"] = left
    main(["doctor", "--cluster"])
    assert cluster.pods == {}


def test_missing_rights_are_listed(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.allowed = lambda attributes: attributes["resource"] != "csidrivers"
    assert main(["doctor", "--cluster", "--no-pods"]) == 20
    assert "you may not create csidrivers.storage.k8s.io" in capsys.readouterr().out


def test_without_the_namespace_no_pod_is_started(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    del cluster.documents["/api/v1/namespaces/weightyard"]
    assert main(["doctor", "--cluster"]) == 20
    assert "kubectl create namespace weightyard" in capsys.readouterr().out
    assert cluster.started == []


def test_a_cluster_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused("Unable to connect to the server: EOF").hint is not None
    monkeypatch.setenv("PATH", "")
    assert main(["doctor", "--cluster"]) == 13
    assert "Install kubectl" in capsys.readouterr().err


def test_a_pod_reads_the_node_and_writes_below_the_cache_alone() -> None:
    (container,) = manifest(PROBE, "gpu-1", "x")["spec"]["containers"]
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
    assert [path for path, read_only in mounts.items() if not read_only] == ["/var/lib/weightyard"]
    assert container["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["DAC_OVERRIDE"],
    }
    assert main([*container["args"][:-3], "--disk-trial=0", "--root=/tmp"]) == 0  # fmt: skip

"""`weightyard explain` of a workspace: of this machine, and of a cluster by its name or its pod's."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import process
from tests.weightyard.local import Terminal, empty_store
from tests.workspace.controller.living import ServedCluster, point_kubectl_at
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_starts import NEWS, RECORD, pod
from weightyard.cli import main
from weightyard.start_text import start_lines
from workspace.controller.observation.pod_start import startup_of
from workspace.startup import Startup


def test_a_workspace_of_this_machine(terminal: Terminal, file: Path) -> None:
    ready = json.loads(terminal.ok("up", "-d", str(file), "--port", "0", "--json"))
    (found,) = json.loads(terminal.ok("explain", "tiny", "--json"))
    (start,) = found["startup"]
    names = [each["name"] for each in start["stages"]]
    assert names == ["volume", "volume", "engine", "warm-up", "health"]
    (tier,) = [each for each in start["stages"] if "tier" in each]
    assert tier["bytes"] == start["stages"][0]["bytes"] > 0
    whole = sum(each["seconds"] for each in start["stages"] if "tier" not in each)
    assert start["total"] == pytest.approx(whole)
    urllib.request.urlopen(f"{ready['url']}/v1/completions", data=b"{}").close()  # noqa: S310 - loopback
    process.wait_until(lambda: "first-token" in terminal.ok("explain", "tiny"), what="a token")
    assert "healthy after" in terminal.ok("explain", "tiny")
    terminal.ok("down", "tiny")


def test_a_start_that_ended_is_told_as_over() -> None:
    start = Startup(started_at="2026-01-01T00:00:00Z", current="process")
    assert "not healthy yet" in start_lines(start)[0]
    first, last = start_lines(start, is_over=True)
    assert "ended before it was healthy" in first
    assert "ended here" in last


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster in which a Workspace had a start, behind kubectl."""
    cluster = Cluster()
    cluster.create_workspace(replicas=1)
    entry = startup_of(pod(), 3, published=[RECORD], news=NEWS)
    assert entry is not None
    ready = {
        "type": "Ready", "status": "False", "reason": "Unschedulable", "message": "chat-1 has no node.",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    status = {"conditions": [ready], "startup": [entry.to_document()]}
    cluster.api.update("Workspace", NAMESPACE, NAME, lambda each: each.update(status=status))
    owned = pod()
    owned["metadata"]["labels"] = {"weightyard.dev/workspace": NAME}
    owned["spec"]["containers"] = [{"name": "server"}]
    cluster.api.create({"apiVersion": "v1", **owned})
    with ServedCluster(cluster) as url:
        point_kubectl_at(url, monkeypatch)
        yield


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("subject", [f"{NAMESPACE}/{NAME}", f"{NAMESPACE}/chat-1"])
def test_a_workspace_of_a_cluster(
    subject: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["explain", subject, "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{NAMESPACE}/{NAME}: not ready: Unschedulable: chat-1 has no node." in out
    assert "start version 3 chat-1 on n1 at 2026-01-01T00:00:00Z: healthy after 1 min 24 s" in out
    for words in ("load the weights", "peer", "first token"):
        assert words in out


@pytest.mark.usefixtures("served")
def test_what_nobody_knows_is_told_in_the_caches_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty_store(tmp_path)
    assert main(["explain", "nobody", "--root", str(tmp_path)]) == 3
    assert "is unknown on this node" in capsys.readouterr().err


@pytest.mark.usefixtures("served")
def test_a_namespace_means_the_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", NAME, "-n", NAMESPACE, "--json"]) == 0
    (found,) = [json.loads(capsys.readouterr().out)]
    assert found[0]["startup"][0]["total"] == 84

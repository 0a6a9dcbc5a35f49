"""`weightyard top`: a machine and a cluster at one look, and live on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.node_cache import NodeCache
from cache_agent.api.wire import ExplainView, SpaceReport
from modelimage.errors import Unreachable
from tests.weightyard.local import Terminal, empty_store
from weightyard.commands.top import _again
from weightyard.top import Frame, NodeLook, Section, cluster_frame, node_frame

GB = 10**9


def node(name: str = "gpu-1", **status: Any) -> NodeCache:
    return NodeCache.model_validate(
        {
            "apiVersion": "weightyard.dev/v1alpha1", "kind": "NodeCache", "metadata": {"name": name},
            "spec": {"node": name}, "status": status,
        }
    )  # fmt: skip


def space(**sizes: int) -> SpaceReport:
    return SpaceReport(
        root="/cache",
        **dict.fromkeys({each.name for each in fields(SpaceReport)} - {"root", "roots"}, 0) | sizes,
    )


def desired(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, **more}


def row(text: str, start: str) -> list[str]:
    """The cells of the first line that begins so."""
    line = next(each for each in text.splitlines() if each.startswith(start))
    return re.split(r"  +", line.rstrip())


def test_a_pod_that_waits_is_shown_with_its_pull() -> None:
    view = ExplainView(
        subject="pod chat/llama-0", state="waiting", image="r/llama:v1", text="waiting for 30 GB", since=0,
        total=40 * GB, done=10 * GB, bytes_per_second=2 * GB, seconds_left=15, sources={"peer gpu-2": 10 * GB},
    )  # fmt: skip

    text = node_frame(NodeLook(node(), space(own=10 * GB, budget=100 * GB), [view]), now=5).text(
        120
    )

    assert text.startswith("gpu-1: 10.0 GB cached of 100 GB")
    assert row(text, "pod chat/llama-0") == [
        "pod chat/llama-0", "fetching", "25%", "40.0 GB", "2.0 GB/s", "15.0 s", "peer gpu-2",
    ]  # fmt: skip


def test_a_fetch_that_stands_still_says_so_in_place_of_its_sources() -> None:
    view = ExplainView(
        subject="image r/llama:v1", state="waiting", image="r/llama:v1", since=0,
        text="being fetched, no bytes for 12 s", total=40 * GB, done=10 * GB, sources={"peer gpu-2": 10 * GB},
    )  # fmt: skip

    text = node_frame(NodeLook(node(), space(), [view]), now=5).text(120)

    assert row(text, "r/llama:v1")[-1] == "being fetched, no bytes for 12 s"


def test_a_pod_that_is_refused_is_shown_with_the_reason() -> None:
    view = ExplainView(
        subject="pod a/b", state="failed", image="r/secret:v1", text="no access to it", since=0
    )

    text = node_frame(NodeLook(node(), space(), [view]), now=5).text(120)

    assert row(text, "pod a/b")[1:] == ["failed", "-", "-", "-", "-", "no access to it"]


def test_a_model_that_waits_for_its_window_is_shown_once_and_a_running_pull_not_again() -> None:
    later = desired("night", "Waiting", message="until 22:00", image="r/night@sha256:1")
    now = desired("llama", "Fetching", image="r/llama@sha256:2")
    pull = ExplainView(
        subject="image r/llama@sha256:2",
        state="waiting",
        image="r/llama@sha256:2",
        text="",
        since=0,
    )

    text = node_frame(
        NodeLook(node(desired=[later, now, desired("held", "Ready")]), space(), [pull]), 0
    ).text(120)

    assert text.count("r/llama@sha256:2") == 1
    assert row(text, "night")[-1] == "until 22:00"
    assert "held" not in text


def test_a_cluster_shows_what_moves_where_and_why_a_workspace_is_not_ready() -> None:
    nodes = [
        node("gpu-1", space={"total": 100 * GB, "used": 40 * GB, "free": 60 * GB}, held="1/2"),
        node("gpu-2", desired=[desired("llama", "Fetching", bytesDone=1, bytesTotal=4, secondsLeft=90)]),
    ]  # fmt: skip
    said = {"type": "Ready", "status": "False", "reason": "NoNode", "message": "No node has 4 GPUs."}  # fmt: skip
    workspaces = [
        {"metadata": {"namespace": "chat", "name": "llama"}, "status": {"replicas": 2, "conditions": [said]}}
    ]  # fmt: skip

    frame = cluster_frame(nodes, workspaces)
    text = frame.text(120)

    assert text.startswith("2 nodes: 40.0 GB cached of 100 GB")
    assert row(text, "llama on gpu-2")[1:6] == ["fetching", "25%", "4 B", "-", "1 min 30 s"]
    assert row(text, "chat/llama") == ["chat/llama", "0/2", "NoNode", "No node has 4 GPUs."]
    assert row(text, "gpu-1")[:2] == ["gpu-1", "1/2"]
    assert [each["metadata"]["name"] for each in frame.document["nodes"]] == ["gpu-1", "gpu-2"]


def test_problems_of_nodes_come_first() -> None:
    condition = {
        "type": "SpaceSufficient", "status": "False", "reason": "NoSpace", "message": "There is no space for llama.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip

    text = cluster_frame([node("gpu-1", conditions=[condition])], []).text(80)

    assert text.splitlines()[1] == "! gpu-1: There is no space for llama."


@given(
    st.lists(st.tuples(st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=200), st.integers())),
    st.integers(20, 200),
    st.integers(3, 40),
)  # fmt: skip
def test_no_line_is_wider_than_the_terminal_and_no_frame_higher(
    rows: list[tuple[str, int]], width: int, height: int
) -> None:
    section = Section("ROWS", ("name", "number"), rows, "none")
    frame = cluster_frame([], [])
    frame = type(frame)(frame.heading, [section], {})

    lines = frame.text(width, height).splitlines()

    assert max(map(len, lines)) <= width
    assert len(lines) <= height


def test_a_machine_without_an_agent_shows_its_models_and_for_programs_as_json(
    terminal: Terminal, tiny_image: str
) -> None:
    terminal.ok("pull", tiny_image)

    text = terminal.ok("top")
    assert row(text, "oci:")[3] == "disk"
    assert "TRANSFERS: nothing is fetched" in text
    assert '"servers": []' in terminal.ok("top", "--json")


def test_on_a_terminal_it_is_live_until_ctrl_c_and_leaves_the_screen_as_it_was(
    terminal: Terminal,
) -> None:
    empty_store(terminal.root)
    ours, theirs = pty.openpty()
    environment = {**terminal.environment(), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    child = subprocess.Popen(
        [sys.executable, "-m", "weightyard.cli", "top", "--interval", "0.2"],
        cwd=terminal.directory, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown, asked = b"", False
    with contextlib.suppress(
        OSError
    ):  # the terminal's end reads as an error once the command is gone
        while data := os.read(ours, 4096):
            shown += data
            # The second look: it is drawn again, in place.
            if not asked and shown.count(b"TRANSFERS") >= 2:
                child.send_signal(signal.SIGINT)
                asked = True
    os.close(ours)

    assert child.wait() == 0
    assert b"\x1b[?1049h" in shown
    assert b"\x1b[?1049l" in shown


@pytest.mark.parametrize("option", ["--interval=0", "--interval=nan"])
def test_an_interval_that_makes_no_sense_is_refused(terminal: Terminal, option: str) -> None:
    assert terminal.run("top", option).returncode == 2


def test_a_look_that_fails_keeps_the_one_before_and_says_so_until_one_succeeds() -> None:
    looks: list[Frame | Unreachable] = [
        Unreachable("the agent doesn't answer"), Unreachable("the agent doesn't answer"),
        node_frame(NodeLook(node("back"), space(), []), now=5),
    ]  # fmt: skip

    def look() -> Frame:
        found = looks.pop(0)
        if isinstance(found, Unreachable):
            raise found
        return found

    frame = node_frame(NodeLook(node("here"), space(), []), now=5)
    for _ in range(2):
        frame = _again(look, frame)
        text = frame.text(80)
        assert text.startswith("here:")
        assert text.count("! not of now: the agent doesn't answer; trying again") == 1
    frame = _again(look, frame)
    assert frame.text(80).startswith("back:")
    assert "not of now" not in frame.text(80)


@pytest.mark.parametrize("width", [10, 40, 80])
def test_no_line_of_an_empty_frame_is_wider_than_the_terminal(width: int) -> None:
    frame = node_frame(NodeLook(node(), space(), []), now=5)
    assert max(len(line) for line in frame.text(width).splitlines()) <= width

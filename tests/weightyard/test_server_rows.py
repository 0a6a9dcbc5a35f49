"""Local servers on the agent's page: what each waits for, why one failed, its load and its start."""

from __future__ import annotations

import os
from dataclasses import replace

from weightyard.up.phases import Phase
from weightyard.up.process import ProcessIdentity, identify
from weightyard.up.server_rows import ServerLoad, server_row
from weightyard.up.state import State, WorkspaceFailure

STARTUP = {
    "startedAt": "2026-01-31T22:00:00Z", "current": "weights", "pod": "",
    "stages": [{"name": "volume", "seconds": 2.5, "bytes": 7}, {"name": "volume", "seconds": 2, "tier": "peer"}],
}  # fmt: skip


def state(phase: Phase, supervisor: ProcessIdentity | None = None) -> State:
    alive = identify(os.getpid())
    assert alive is not None
    return State(
        name="chat", phase=phase, supervisor=supervisor or alive, image="r/chat:v1", started_at=0.0,
        host="127.0.0.1", port=8000, startup=STARTUP,
    )  # fmt: skip


def test_a_server_that_pulls_waits_for_its_model() -> None:
    row = server_row(state(Phase.PULLING), None)

    assert (row["ready"], row["bad"]) == (False, False)
    assert [step["state"] for step in row["steps"]] == ["now", "later"]
    assert row["starts"] == [
        {"at": "2026-01-31T22:00:00Z", "current": "weights", "stages": STARTUP["stages"]}
    ]


def test_a_server_that_starts_says_where_its_log_is() -> None:
    row = server_row(state(Phase.STARTING), None)

    assert [step["state"] for step in row["steps"]] == ["done", "now"]
    assert "weightyard logs chat" in row["why"]


def test_a_server_that_is_ready_shows_its_load() -> None:
    row = server_row(state(Phase.READY), ServerLoad(2, 1))

    assert (row["ready"], row["running"], row["waiting"]) == (True, 2, 1)
    assert {step["state"] for step in row["steps"]} == {"done"}


def test_a_server_that_failed_says_why_and_what_to_do() -> None:
    failed = replace(
        state(Phase.FAILED), failure=WorkspaceFailure("out of memory", "Use a smaller context.", 1)
    )

    row = server_row(failed, None)

    assert row["bad"] is True
    assert row["why"] == "out of memory. Use a smaller context."


def test_a_server_whose_processes_are_gone_is_a_problem() -> None:
    gone = ProcessIdentity(pid=2**22 + 1, start=1, boot="")

    row = server_row(state(Phase.READY, gone), ServerLoad(0, 0))

    assert (row["ready"], row["bad"]) == (False, True)

"""Local servers as the page shows them, and their load as their metrics say."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cache_agent.api.page.starts import start_row
from modelimage.errors import RemoteRefused
from weightyard.up.phases import Phase
from weightyard.up.state import State, all_workspaces, condition, is_running

_METRICS_SECONDS: Final = 1.0
# A vLLM server's page has about 100 kB; one that sends more isn't a server of ours.
_MOST_METRICS: Final = 4 << 20
_SPACE: Final = "this machine"


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """A local server's requests, as its metrics say: those that run and those that wait."""

    running: int
    waiting: int


def server_load(server: State) -> ServerLoad | None:
    """The requests of a local server; None while it doesn't answer or has no such metrics."""
    from workspace.server_metrics import parse_reading  # noqa: PLC0415 - only where servers run

    connection = http.client.HTTPConnection(server.host, server.port, timeout=_METRICS_SECONDS)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read(_MOST_METRICS).decode(errors="replace")
        reading = parse_reading(text)
    except (OSError, http.client.HTTPException, RemoteRefused):
        return None
    finally:
        connection.close()
    return ServerLoad(int(reading.running), int(reading.waiting))


def server_rows(root: Path) -> dict[str, dict[str, Any]]:
    """The page's rows of the servers that `weightyard up` runs under a root, or that failed. By name."""
    found = [each for each in all_workspaces(root) if condition(each) != Phase.STOPPED.value]
    return {
        f"{_SPACE}/{each.name}": server_row(each, server_load(each) if is_ready(each) else None)
        for each in found
    }


def is_ready(state: State) -> bool:
    """Whether a server answered its health check and runs."""
    return state.phase is Phase.READY and is_running(state)


def server_row(state: State, load: ServerLoad | None) -> dict[str, Any]:
    """One server's row."""
    ready, running = is_ready(state), is_running(state)
    said = _said(state)
    row: dict[str, Any] = {
        "name": state.name,
        "space": _SPACE,
        "ready": ready,
        "serves": ready,
        "reason": condition(state),
        "why": "" if ready else said,
        "bad": not running,
        "replicas": 1,
        "readyReplicas": int(ready),
        "steps": _steps(state, said),
        "pods": [
            {"name": state.name, "state": condition(state), "node": _SPACE, "since": _time(state.started_at)}
        ],
        "starts": [start_row(state.startup)] if state.startup else [],
        "image": state.image,
        "variant": state.variant,
        "model": state.key.removeprefix("sha256:")[:20],
        "url": state.url,
    }  # fmt: skip
    if load is not None:
        row |= {"running": load.running, "waiting": load.waiting}
    return {name: value for name, value in row.items() if value not in ("", [])}


def _steps(state: State, said: str) -> list[dict[str, Any]]:
    """The way of a local server: its model, then its first health check."""
    running = is_running(state)
    # One that failed after it was started had its model.
    cached = state.phase not in (Phase.PULLING, Phase.FAILED) or bool(state.server)
    steps = []
    blocked = False
    for title, done in (("Model on this machine", cached), ("Server answers", is_ready(state))):
        now = "now" if running else "failed"
        step = {"title": title, "state": "done" if done else "later" if blocked else now}
        if not done and not blocked:
            step["said"] = said
        blocked = blocked or not done
        steps.append(step)
    return steps


def _said(state: State) -> str:
    """What a server does, or why it failed and what to do."""
    if state.failure is not None:
        return ". ".join(filter(None, (state.failure.message, state.failure.hint)))
    words = {
        Phase.PULLING: "The model is being fetched.",
        Phase.STARTING: f"The server starts: see weightyard logs {state.name}.",
        Phase.STOPPING: "The server is being stopped.",
    }
    if not is_running(state):
        return (
            f"Its processes are gone without a recorded reason: see weightyard logs {state.name}."
        )
    return words.get(state.phase, "")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

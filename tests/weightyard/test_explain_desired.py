"""`weightyard explain` of a model that the agent was asked to hold, at a terminal."""

from __future__ import annotations

import json
from typing import Any

from cache_agent.net.sockets import is_listening
from cache_agent.store.paths import StorePaths
from tests.servers.process import wait_until
from tests.weightyard.local import Terminal


def explained(terminal: Terminal, subject: str) -> dict[str, Any]:
    (view,) = json.loads(terminal.ok("--json", "explain", subject))
    return dict(view)


def test_a_desired_model_that_can_t_be_had_is_explained(
    terminal: Terminal, tiny_image: str
) -> None:
    terminal.ok("pull", tiny_image)
    image = f"oci:{terminal.directory}/absent:v1"
    terminal.ok("prewarm", image, "--name", "chat")
    waits = explained(terminal, image)
    assert (waits["state"], waits["reason"], waits["desired_by"]) == (
        "waiting",
        "NoAgent",
        ["chat"],
    )
    assert "since" not in terminal.ok("explain", image), "nobody knows since when"

    terminal.start("agent")
    wait_until(lambda: is_listening(StorePaths(terminal.root).socket), what="the agent")
    wait_until(lambda: explained(terminal, image)["state"] == "failed", what="a failure")
    view = explained(terminal, "chat")
    assert view["failures"] >= 1
    assert view["retry_at"] > view["since"] > 0
    # Relative to where the command runs, as everywhere.
    text = terminal.ok("explain", "oci:absent:v1")
    assert text.startswith(f"image {image}: failed: ")
    assert str(terminal.directory / "absent") in text.splitlines()[0].partition(": failed: ")[2]
    for line in ("  desired by: chat\n", "  failed: ", "  tried again: ", "  since: "):
        assert line in text

    terminal.ok("prewarm", image, "--name", "chat", "--remove")
    wait_until(lambda: terminal.run("explain", image).returncode == 3, what="what isn't desired")

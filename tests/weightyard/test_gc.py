"""`weightyard gc`: scripts see by its exit code whether there is now the space that they asked for."""

from __future__ import annotations

import json

from tests.weightyard.local import Terminal


def test_less_than_was_asked_for_is_a_failure(terminal: Terminal, tiny_image: str) -> None:
    """After the result, which says what was evicted; a plan that won't do fails alike."""
    terminal.ok("pull", tiny_image)
    assert terminal.run("gc", "--free", "1MB", "--dry-run").returncode == 0
    planned = terminal.run("gc", "--free", "1TB", "--dry-run")
    assert planned.returncode == 10
    assert "would free" in planned.stdout
    done = terminal.run("--json", "gc", "--free", "1TB")
    assert done.returncode == 10
    assert [each["freed"] > 0 for each in json.loads(done.stdout)["victims"]] == [True]
    assert "not 1.0 TB" in done.stderr
    assert terminal.run("gc").returncode == 0
    assert json.loads(terminal.ok("ls", "--json")) == []

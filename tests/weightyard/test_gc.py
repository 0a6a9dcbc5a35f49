"""`weightyard gc`: scripts see by its exit code whether there is now the space that they asked for."""

from __future__ import annotations

import json
import re

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
    assert "less than was asked for" in done.stderr
    # What was freed is the result, and said once.
    assert "freed" not in done.stderr
    assert terminal.run("gc").returncode == 0
    assert json.loads(terminal.ok("ls", "--json")) == []


def test_who_keeps_the_rest_is_named_as_people_know_it(terminal: Terminal, tiny_image: str) -> None:
    terminal.ok("pull", tiny_image)
    terminal.ok("lease", "take", tiny_image, "--holder", "Ada")
    refused = terminal.run("gc", "--free", "1TB", "--dry-run")
    assert "in use by Ada" in refused.stderr
    assert terminal.ok("lease", "ls").splitlines()[1].split()[2] == "Ada"


def test_a_victim_is_explained_in_words_and_units_of_people(
    terminal: Terminal, tiny_image: str
) -> None:
    terminal.ok("pull", tiny_image)
    line = terminal.ok("gc", "--free", "1MB", "--dry-run").splitlines()[0]
    said = r"would evict \S+ \(\S+ [kM]B\): (used \d+ times?, last|last used) \d+ s ago(; took \d+ s to fetch)?"
    assert re.fullmatch(said, line), line

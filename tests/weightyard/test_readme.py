"""What the README promises: the tour runs as written, the picture shows a run, the numbers are where it says."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import terminal_capture
from tests.servers.ports import free_port
from tests.servers.process import child_environment

REPOSITORY = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def tour() -> str:
    """All shell blocks of the README, in order."""
    return "\n".join(_BLOCK.findall(readme()))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tour(tmp_root: Path, smollm2: Path) -> None:
    environment = child_environment(tmp_root, WEIGHTYARD_CACHE=str(smollm2.parent.parent))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    port = str(free_port())  # the README's may be taken here
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", tour().replace("8137", port)],
            cwd=tmp_root, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(
            [sys.executable, "-m", "weightyard.cli", "down", "--all"],
            env=environment, cwd=tmp_root, check=True, capture_output=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    promises = (
        "oci:./smollm2:v1 is intact",
        f"ready at http://127.0.0.1:{port}",
        " Paris",
        "smollm2: stopped",
    )
    assert [promise for promise in promises if promise not in done.stdout] == []


def test_tour_has_every_verb() -> None:
    """The tour isn't empty, and names only commands that exist."""
    from weightyard.cli import entries  # noqa: PLC0415

    named = set(re.findall(r"^weightyard ([a-z]+)", tour(), re.MULTILINE))
    assert (
        {"build", "inspect", "verify", "pull", "up", "ps", "logs", "down"}
        <= named
        <= set(entries())
    )


def shown(picture: str) -> str:
    """The words of an SVG picture, in reading order, without spaces between them."""
    words = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', picture)
    ordered = sorted(words, key=lambda word: (float(word[1]), float(word[0])))
    return re.sub(r"\s", "", html.unescape("".join(text for _, _, text in ordered)))


def test_the_picture_is_of_the_commands_that_the_script_runs() -> None:
    """Small, whole, and complete in itself: nothing in it is loaded from elsewhere."""
    picture = terminal_capture.PICTURE.read_text()
    assert len(picture.encode()) < 60_000
    ElementTree.fromstring(picture)  # noqa: S314 - our own file
    assert re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?(?!#)[^)\"']+", picture) == []
    words = shown(picture)
    for command in terminal_capture.COMMANDS:
        assert "$" + re.sub(r"\s", "", command) in words
    assert "isintact" in words
    assert "Paris" in words
    assert f"](docs/images/{terminal_capture.PICTURE.name})" in readme()


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("50%\r100%\r\n", ["100%"]),
        ("a\r\nb\x1b[1A\r\x1b[2Knew\r\n", ["new", "b"]),
        ("\x1b[?25l\x1b]0;title\x07x\x1b[?25h", ["x"]),
        ("\x1b[1;32mok\x1b[0m then", ["\x1b[1;32mok\x1b[0m then"]),
        ("long\r\x1b[2Cx\x1b[K", ["loxg"[:3]]),
        ("", []),
    ],
)
def test_a_screen_shows_what_a_terminal_shows(written: str, lines: list[str]) -> None:
    screen = terminal_capture.Screen()
    screen.feed(written)
    assert list(screen.lines()) == lines


def test_measured_numbers_are_those_of_the_pages_that_they_link() -> None:
    """Each number in the table is on the page that says how it was measured."""
    rows = re.findall(r"^\| (.*) \| \[how\]\(([^)#]+)[^)]*\) \|$", readme(), re.MULTILINE)
    assert len(rows) >= 2
    for row, page in rows:
        text = (REPOSITORY / page).read_text()
        numbers = re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])", row)
        missing = [each for each in numbers if not re.search(rf"(?<![\d.]){each}(?!\d)", text)]
        assert missing == [], (row, page)

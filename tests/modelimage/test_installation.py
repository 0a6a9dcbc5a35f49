"""Install hints for each way in which a copy comes, as they are typed in a shell."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from modelimage.installation import install_command, installation

REPOSITORY = Path(__file__).parents[2]
WHEEL = json.dumps(
    {"url": "https://example.org/weightyard-0.1.0-py3-none-any.whl", "archive_info": {}}
)
CHECKOUT = json.dumps({"url": "file:///home/a%20b/weightyard", "dir_info": {"editable": True}})
DIRECTORY = json.dumps({"url": "file:///src/weightyard", "dir_info": {}})


@pytest.mark.parametrize(
    ("receipt", "url", "words"),
    [
        (None, WHEEL, ["py", "-m", "pip", "install", "weightyard[sign] @ https://example.org/weightyard-0.1.0-py3-none-any.whl"]),
        (None, CHECKOUT, ["py", "-m", "pip", "install", "-e", "/home/a b/weightyard[sign]"]),
        (None, DIRECTORY, ["py", "-m", "pip", "install", "weightyard[sign] @ file:///src/weightyard"]),
        (None, "", ["py", "-m", "pip", "install", "weightyard[sign]"]),
        (None, "{broken", ["py", "-m", "pip", "install", "weightyard[sign]"]),
        ("uv-receipt.toml", WHEEL,
         ["uv", "tool", "install", "--force", "weightyard[sign] @ https://example.org/weightyard-0.1.0-py3-none-any.whl"]),
        ("uv-receipt.toml", CHECKOUT, ["uv", "tool", "install", "--force", "-e", "/home/a b/weightyard[sign]"]),
        ("pipx_metadata.json", CHECKOUT, ["pipx", "install", "--force", "--editable", "/home/a b/weightyard[sign]"]),
    ],
)  # fmt: skip
def test_the_command_installs_the_same_copy(
    tmp_path: Path, receipt: str | None, url: str, words: list[str]
) -> None:
    if receipt:
        (tmp_path / receipt).touch()
    found = installation(prefix=tmp_path, python="py", direct_url=url)
    assert shlex.split(found.install_command("sign")) == words


def test_a_checkout_names_itself() -> None:
    assert f"-e '{REPOSITORY}[a,b]'" in install_command("a", "b")


def test_hints_are_made_in_one_place() -> None:
    """No module writes `pip install weightyard` itself."""
    written = [
        path
        for package in (
            "modelimage",
            "quantize",
            "builder",
            "cache_agent",
            "workspace",
            "weightyard",
        )
        for path in (REPOSITORY / package).rglob("*.py")
        if re.search(r"pip install[^\n]*weightyard\b(?! up)", path.read_text())
    ]
    assert written == []

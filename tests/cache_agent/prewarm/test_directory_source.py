"""The prewarm directory holds whatever somebody puts there: an agent reads documents, and waits for nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache_agent.prewarm.directory_source import DirectorySource

GOOD = """\
apiVersion: weightyard.dev/v1alpha1
kind: CachedModel
metadata: {name: good}
spec: {image: registry.example/team/m:v1}
"""


@pytest.mark.parametrize("kind", ["pipe", "device", "too large", "binary", "directory", "nothing"])
def test_what_is_no_document_is_told_and_hides_no_other(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "a-odd.yaml"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    elif kind == "too large":
        odd.write_text(GOOD + "#" * (1 << 20))
    elif kind == "binary":
        odd.write_bytes(b"\xff\xfe\x00")
    elif kind == "directory":
        odd.mkdir()
    else:
        odd.symlink_to(tmp_path / "gone")
    (tmp_path / "b-good.yaml").write_text(GOOD)
    found = DirectorySource(tmp_path).read()
    assert list(found.models) == ["good"]
    assert len(found.refused) == (kind != "nothing")
    assert all(each.message.startswith("a-odd.yaml: ") for each in found.refused)


def test_a_file_has_so_many_problems_at_most(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("---\na\n" * 3000)
    refused = DirectorySource(tmp_path).read().refused
    assert len(refused) == 21
    assert refused[-1].message == "a.yaml: 2980 more problems"


@pytest.mark.parametrize(
    ("document", "name", "image"),
    [
        ("{kind: CachedModel, metadata: {name: Bad_Name}, spec: {image: 'r/m:v1'}}", "Bad_Name", "r/m:v1"),
        ("{kind: Workspace, metadata: {name: chat}, spec: {model: {image: '::'}}}", "chat", "::"),
        ("{kind: Deployment, metadata: {name: x}}", "x", ""),
        ("{kind: CachedModel, metadata: {name: [1]}, spec: 3}", "", ""),
        ("{kind: CachedModel, metadata: {name: '" + "x" * 1000 + "'}}", "", ""),
        ("[1, 2]", "", ""),
        ("text", "", ""),
    ],
)  # fmt: skip
def test_a_refused_document_tells_whose_it_is(
    tmp_path: Path, document: str, name: str, image: str
) -> None:
    """As far as it can be read; of many in one file, the message names the one."""
    (tmp_path / "a.yaml").write_text(f"{GOOD}\n---\n{document}\n")
    (refused,) = DirectorySource(tmp_path).read().refused
    assert (refused.name, refused.image) == (name, image)
    assert refused.message.startswith(f"a.yaml: {name}: " if name else "a.yaml: ")

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
    (tmp_path / "a.yaml").write_text("".join(f"---\nkind: x{n}\n" for n in range(3000)))
    refused = DirectorySource(tmp_path).read().refused
    assert len(refused) == 21
    assert refused[-1].message == "a.yaml: 2980 more problems"


@pytest.mark.parametrize(
    ("document", "name", "image"),
    [
        ("{kind: CachedModel, metadata: {name: Bad_Name}, spec: {image: 'r.test/m:v1'}}", "Bad_Name", "r.test/m:v1"),
        ("{kind: Workspace, metadata: {name: chat}, spec: {model: {image: '::'}}}", "workspace.chat", "::"),
        ("{kind: Deployment, metadata: {name: x}}", "x", ""),
        ("{kind: CachedModel, metadata: {name: [1]}, spec: 3}", "", ""),
        ("{kind: CachedModel, metadata: {name: '" + "x" * 1000 + "'}}", "", ""),
        ("{kind: CachedModel, metadata: {name: \"a\\nb\"}}", "", ""),
        ("{kind: CachedModel, metadata: {name: x}, spec: {image: 'oci:l:v1', pin: 3}}", "x", "oci:HERE/l:v1"),
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
    assert (refused.name, refused.image) == (name, image.replace("HERE", str(tmp_path)))
    assert refused.message.startswith(f"a.yaml: {name}: " if name else "a.yaml: ")


@pytest.mark.parametrize(
    "kind",
    [
        "x" * 900_000,
        "x\\nimage r/prod:v1: ready: the model is cached",
        "\\e[2J",
        "\U0010ffff" * 5000,
    ],
)
def test_the_words_of_a_refused_document_are_short_and_begin_no_line(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "a.yaml").write_text(f'{{kind: "{kind}", metadata: {{name: forged}}}}')
    (refused,) = DirectorySource(tmp_path).read().refused
    assert len(refused.message) < 1100
    assert refused.message.isprintable()


def test_a_name_that_is_there_twice_tells_where_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{GOOD}\n---\n" * 100)
    (tmp_path / "b.yaml").write_text(GOOD)
    found = DirectorySource(tmp_path).read()
    assert list(found.models) == ["good"]
    twice, another = found.refused[0], found.refused[-1]
    assert twice.message == "a.yaml: good: it is there twice, and the first counts (99 times)"
    assert another.message == "b.yaml: good: there is one of this name in a.yaml, which counts"
    assert (another.name, another.image) == ("good", found.models["good"].spec.image)
    assert len(found.refused) == 2


WORKSPACE = (
    "{{apiVersion: weightyard.dev/v1alpha1, kind: Workspace, metadata: {{name: a}}, spec: {}}}"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WORKSPACE.format("{model: {imgae: x}}"), "unknown field spec.model.imgae; did you mean 'image'?"),
        (WORKSPACE.format("{modle: {image: x}}"), "unknown field spec.modle; did you mean 'model'?"),
        (WORKSPACE.format("{model: {hub: a/b}}"), "it names no image: only images can be pre-warmed"),
        ("{a: [", "it is not valid YAML"),
        ("#" * (2 << 20), "can't be read: it has more than 1 MiB"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_without_the_names_again(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (refused,) = DirectorySource(tmp_path).read().refused
    assert refused.why.startswith(said)
    assert refused.message.count("a.yaml") == 1

"""Digests, references, ranges, paths, descriptors, canonical JSON: the laws that their docstrings state."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage import canonical
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput
from modelimage.path_rules import check_model_path, check_path, parents
from modelimage.ranges import ByteRange, parse_content_range, parse_range
from modelimage.reference import (
    EngineReference,
    LayoutReference,
    RegistryReference,
    check_directory_meant,
    parse_image,
)
from tests.modelimage.strategies import descriptors, digests, json_objects, paths

DIGEST = Digest.of(b"x")


# Digest


@given(digests)
def test_a_digest_is_parsed_as_it_is_written(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:ABC", f"sha512:{'0' * 64}", f"sha256:{'g' * 64}", "0" * 64,
     f"sha256:{'A' * 64}", f"sha256:{'0' * 64}\n", f"sha256:{'0' * 65}"],
)  # fmt: skip
def test_what_is_no_sha256_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Digest.parse(text)


def test_a_digest_of_bytes_is_their_sha256() -> None:
    assert Digest.of(b"").hex.startswith("e3b0c44298fc")
    assert Digest.of(b"").short == "e3b0c44298fc"


# References

_repositories = st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+)?(/[a-z0-9]+)?", fullmatch=True).filter(
    lambda text: len(text) < 100
)
_hosts = st.sampled_from(["ghcr.io", "localhost:5000", "127.0.0.1:80", "[::1]:5000", "r.example"])
_tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
_registry_references = st.builds(
    RegistryReference, _hosts, _repositories, st.none() | _tags, st.none() | digests
)


@given(_registry_references)
def test_a_registry_reference_is_parsed_as_it_is_written(reference: RegistryReference) -> None:
    assert parse_image(str(reference)) == reference


@given(st.sampled_from([".", "out", "/a/b", "../x y"]), _tags, st.none() | digests)
def test_a_layout_reference_is_parsed_as_it_is_written(
    path: str, tag: str, digest: Digest | None
) -> None:
    reference = LayoutReference(Path(path), tag, digest)
    assert parse_image(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ubuntu", RegistryReference("docker.io", "library/ubuntu")),
        ("team/model:v1", RegistryReference("docker.io", "team/model", "v1")),
        ("index.docker.io/a/b", RegistryReference("docker.io", "a/b")),
        ("localhost/m", RegistryReference("localhost", "m")),
        ("r.example:5000/m:v1", RegistryReference("r.example:5000", "m", "v1")),
        (f"r.example/m:v1@{DIGEST}", RegistryReference("r.example", "m", "v1", DIGEST)),
        ("docker://r.example/m", RegistryReference("r.example", "m")),
        ("oci://r.example:5000/team/m:v1", RegistryReference("r.example:5000", "team/m", "v1")),
        ("oci://team/m", RegistryReference("docker.io", "team/m")),
        ("docker:m:v1", EngineReference("m:v1")),
        ("oci:out", LayoutReference(Path("out"))),
        ("oci:/x/y:v1", LayoutReference(Path("/x/y"), "v1")),
        ("oci:/x:y/z", LayoutReference(Path("/x:y/z"))),
        (f"oci:out@{DIGEST}", LayoutReference(Path("out"), None, DIGEST)),
    ],
)
def test_familiar_names_are_understood(text: str, expected: object) -> None:
    assert parse_image(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "UPPER/case", "r.example/", "r.example/a//b", "r.example/a:", "r.example/a:b c", "docker:",
     "oci:", "oci://", "oci:///srv/out:v1", "oci://./out:v1", "oci://../out", "docker:///x",
     "r.example/a@sha256:12", "r.example/a:.x", f"r.example/{'a' * 256}", "a/../b", "r.example:x/m"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_image(text)


@given(st.text(max_size=60))
def test_parsing_a_reference_raises_nothing_but_invalid_input(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_image(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf://org/name", "`weightyard build hf://org/name --to"), ("s3://bucket/a", "`weightyard build s3://bucket/a"),
        ("https://huggingface.co/org/Name.1/tree/main", "write hf://org/Name.1:"),
        ("https://huggingface.co/org/name?library=vllm", "write hf://org/name:"),
        ("https://registry.example/a:v1", "as registry.example/a:v1."), ("./out", "oci:./out:TAG"),
        ("/a/out", "oci:/a/out:TAG"), ("Team/Model", "lower case"), ("https://huggingface.co/..", "without https://"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_answered_with_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_image(text)
    assert meant in str(caught.value.hint)


def test_docker_hub_has_another_name_for_its_api() -> None:
    assert RegistryReference("docker.io", "library/x").api_host == "registry-1.docker.io"
    assert RegistryReference("ghcr.io", "x").api_host == "ghcr.io"


def test_a_digest_is_asked_for_rather_than_a_tag() -> None:
    assert RegistryReference("r", "m", "v1", DIGEST).name == str(DIGEST)
    assert RegistryReference("r", "m", "v1").name == "v1"
    assert LayoutReference(Path("out")).name == "latest"


# Ranges

_ranges = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)).map(
    lambda pair: ByteRange(pair[0], pair[0] + pair[1])
)


@given(_ranges, st.integers(0, 10**6))
def test_a_range_header_is_parsed_as_it_is_written(wanted: ByteRange, beyond: int) -> None:
    assert parse_range(wanted.header, wanted.stop + beyond) == wanted
    assert len(wanted) == wanted.stop - wanted.start


@given(_ranges, st.integers(0, 10**6))
def test_a_content_range_is_parsed_as_it_is_written(held: ByteRange, beyond: int) -> None:
    total = held.stop + beyond
    text = f"bytes {held.start}-{held.stop - 1}"
    assert parse_content_range(f"{text}/{total}") == (held, total)
    assert parse_content_range(f"{text}/*") == (held, None)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", ByteRange(0, 10)),
        ("bytes=3-99", ByteRange(3, 10)),
        ("bytes=-4", ByteRange(6, 10)),
        ("bytes=-99", ByteRange(0, 10)),
        ("BYTES = 1-2", ByteRange(1, 3)),
        ("bytes=1-2,4-5", None),
        ("items=1-2", None),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes", None),
        ("bytes=\u0661-\u0662", None),
    ],
)
def test_range_headers_of_a_representation_of_ten_bytes(
    header: str, expected: ByteRange | None
) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(InvalidInput):
        parse_range(header, 10)


@pytest.mark.parametrize(
    "header",
    ["", "bytes 5-2/10", "bytes */10", "bytes 0-9/5", "items 0-1/2", "bytes 0-9"],
)
def test_a_malformed_content_range_is_none(header: str) -> None:
    assert parse_content_range(header) is None


@given(st.text(max_size=40), st.integers(0, 100))
def test_parsing_ranges_raises_nothing_but_invalid_input(text: str, size: int) -> None:
    parse_content_range(text)
    try:
        found = parse_range(f"bytes={text}", size)
    except InvalidInput:
        return
    assert found is None or found.stop <= size


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 3), (4, 3)])
def test_an_empty_or_negative_range_is_refused(start: int, stop: int) -> None:
    with pytest.raises(InvalidInput):
        ByteRange(start, stop)


# Paths


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\\b", "a\nb", "a\0b", "\ud800", "a" * 256,
     "/".join(["a" * 200] * 6), "\x7f"],
)  # fmt: skip
def test_an_unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidImage):
        check_path(path)


@pytest.mark.parametrize(
    "path", ["weightyard.json", "weightyard.json/x", "models", "models/config.json"]
)
def test_a_reserved_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidImage):
        check_model_path(path)


@given(paths)
def test_a_good_path_stays_below_its_root(path: str) -> None:
    assert check_model_path(path) == path
    assert (Path("/root") / path).resolve().is_relative_to("/root")
    assert all(path.startswith(f"{parent}/") for parent in parents(path))


# Descriptors and canonical JSON


@given(descriptors)
def test_a_descriptor_is_parsed_as_it_is_written(descriptor: Descriptor) -> None:
    assert Descriptor.from_json(json.loads(json.dumps(descriptor.to_json()))) == descriptor


@pytest.mark.parametrize(
    "change",
    [{"mediaType": 1}, {"mediaType": "a/b\r\nX: y"}, {"mediaType": "x" * 300}, {"mediaType": "\ud800/x"},
     {"digest": 7}, {"digest": "md5:x"}, {"size": -1}, {"size": True}, {"size": "1"},
     {"size": 1 << 70}, {"annotations": {"a": 1}}, {"annotations": [["a", "b"]]}, {"annotations": "ab"},
     {"artifactType": 5}],
)  # fmt: skip
def test_a_malformed_descriptor_is_refused(change: dict[str, object]) -> None:
    good = {"mediaType": "a/b", "digest": str(DIGEST), "size": 1}
    with pytest.raises(InvalidImage):
        Descriptor.from_json({**good, **change})
    for member in good:
        with pytest.raises(InvalidImage):
            Descriptor.from_json({key: good[key] for key in good if key != member})


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["mediaType", "digest", "size", "annotations", "platform"]), x)))  # fmt: skip
def test_parsing_a_descriptor_raises_nothing_but_invalid_image(value: object) -> None:
    with pytest.raises(InvalidImage):
        Descriptor.from_json(value)


@given(json_objects)
def test_canonical_json_is_parsed_as_it_is_written(document: dict[str, object]) -> None:
    data = canonical.to_bytes(document)
    assert canonical.parse(data, what="it") == document
    assert canonical.to_bytes(dict(reversed(document.items()))) == data


@given(text=st.text(st.characters(codec=None), max_size=5))
def test_text_that_cannot_be_written_is_not_read(text: str) -> None:
    """JSON's escapes may state half of a character: what was parsed can be written and shown."""
    data = json.dumps({"text": text}).encode()
    try:
        found = canonical.parse(data, what="it")
    except InvalidImage:
        assert any("\ud800" <= letter <= "\udfff" for letter in text)
    else:
        assert canonical.parse(canonical.to_bytes(found), what="it") == found


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 100_000, '{"a": 1}'.encode("utf-16")]
)
def test_bytes_that_are_no_json_object_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="the thing"):
        canonical.parse(data, what="the thing")


@pytest.mark.parametrize("name", ["quay.io/team/m", "registry:5000/m", "localhost/m"])
def test_a_new_directory_is_not_named_like_a_repository(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        check_directory_meant(Path(name))
    assert f"oci://{name}" in (caught.value.hint or "")
    Path(name).mkdir(parents=True)
    check_directory_meant(Path(name))


@pytest.mark.parametrize(
    "name", ["out", "ghcr.io", "out/m", "Llama-3.1/m", "qwen2.5/m", "/ghcr.io/m", "../ghcr.io/m"]
)
def test_other_directories_are(name: str) -> None:
    check_directory_meant(Path(name))


@pytest.mark.parametrize(
    "text", ["workspace.yaml", "dir/w.yml", "./workspace.yaml", "/srv/w.json", "w.yaml"]
)
def test_a_file_in_place_of_an_image_is_told_so(text: str) -> None:
    """Else Docker Hub is asked for an image of that name."""
    with pytest.raises(InvalidInput) as refused:
        parse_image(text)
    assert "name the image in it" in str(refused.value.hint)


@pytest.mark.parametrize(
    "text", ["docker.io/library/w.yaml", "registry.example/w.yaml", "w.yaml:v1", "oci:w.yaml"]
)
def test_an_image_may_be_called_like_a_file(text: str) -> None:
    assert parse_image(str(parse_image(text))) == parse_image(text)

"""How the client takes what registries answer beyond what docker-registry does: pages, missing headers, lies."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from modelimage import mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidImage,
    InvalidInput,
    NotFound,
    RemoteRefused,
)
from modelimage.ranges import ByteRange
from modelimage.referrers import make_artifact
from modelimage.registry.client import RegistryRepository
from modelimage.registry.exchange import Request, WebOrigin
from modelimage.repository import MAX_MANIFEST_BYTES
from tests.modelimage.conformance import described
from tests.modelimage.exchanges import Answer, ScriptedSender

ORIGIN = WebOrigin.parse("https://r.example")
MANIFEST = b'{"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
FOUND = described(MANIFEST, mediatypes.OCI_MANIFEST)
TYPED = {"Content-Type": mediatypes.OCI_MANIFEST}
FULL = {**TYPED, "Content-Length": str(FOUND.size), "Docker-Content-Digest": str(FOUND.digest)}


def repository(script: Callable[[Request, int], Answer | Exception]) -> RegistryRepository:
    return RegistryRepository(ScriptedSender(script), ORIGIN, "team/model")


def answering(*answers: Answer) -> RegistryRepository:
    """A repository whose requests are answered in this order."""
    return repository(lambda _, count: answers[count])


# Resolving


def test_a_head_that_says_all_is_enough() -> None:
    assert answering(Answer(200, FULL)).resolve("v1") == FOUND


@pytest.mark.parametrize("missing", ["Docker-Content-Digest", "Content-Length", "Content-Type"])
def test_a_head_that_says_less_is_followed_by_a_get(missing: str) -> None:
    headers = {name: value for name, value in FULL.items() if name != missing}
    get = Answer(200, {} if missing == "Content-Type" else TYPED, MANIFEST)
    assert answering(Answer(200, headers), get).resolve("v1") == FOUND


@pytest.mark.parametrize(
    "head",
    [
        Answer(400),
        Answer(405),
        Answer(501),
        Answer(200, {**FULL, "Content-Length": "0"}),
        Answer(200, {**FULL, "Docker-Content-Digest": "md5:x"}),
    ],
)
def test_a_head_that_is_of_no_use_is_followed_by_a_get(head: Answer) -> None:
    assert answering(head, Answer(200, TYPED, MANIFEST)).resolve("v1") == FOUND


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_registry_without_head_may_lack_the_blob(status: int) -> None:
    assert not answering(Answer(status)).has_blob(FOUND)


def test_another_digest_than_asked_for_is_a_mismatch() -> None:
    with pytest.raises(DigestMismatch):
        answering(Answer(200, FULL)).resolve(str(Digest.of(b"other")))


def test_what_is_no_digest_is_invalid_input() -> None:
    with pytest.raises(InvalidInput):
        answering().resolve("sha512:abc")


def test_a_manifest_longer_than_said_or_than_allowed_is_refused() -> None:
    with pytest.raises(DigestMismatch):
        answering(Answer(200, TYPED, MANIFEST + b" ")).manifest(FOUND)
    with pytest.raises(InvalidImage):
        answering(Answer(405), Answer(200, TYPED, bytes(MAX_MANIFEST_BYTES + 1))).resolve("v1")


# Blobs


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (206, {}, "a different range"),
        (206, {"Content-Range": "bytes 0-9/100"}, "a different range"),
        (206, {"Content-Range": "bytes 10-19/99"}, "a different range"),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "9"}, "9 bytes instead of 10"),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Encoding": "gzip"}, "encoded"),
        (200, {"Content-Length": "100"}, "whole blob"),
    ],
)
def test_a_range_answered_with_something_else_is_refused(
    status: int, headers: dict[str, str], says: str
) -> None:
    blob = Descriptor("x", Digest.of(b"blob"), 100)
    answer = Answer(status, headers)
    with (
        pytest.raises(RemoteRefused, match=says),
        answering(answer).blob(blob, ByteRange(10, 20)),
    ):
        pass
    assert answer.discarded


def test_an_unasked_range_or_length_is_refused() -> None:
    blob = Descriptor("x", Digest.of(b"blob"), 100)
    for answer in (
        Answer(206, {"Content-Range": "bytes 0-99/100"}),
        Answer(200, {"Content-Length": "99"}),
    ):
        with pytest.raises(RemoteRefused), answering(answer).blob(blob):
            pass


def test_a_blob_of_another_length_does_not_count_as_there() -> None:
    blob = Descriptor("x", Digest.of(b"blob"), 100)
    assert not answering(Answer(200, {"Content-Length": "99"})).has_blob(blob)
    assert answering(Answer(200)).has_blob(blob)


# Pages


def test_tags_come_in_pages() -> None:
    client = answering(
        Answer(200, {"Link": '</v2/team/model/tags/list?last=b&n=2>; rel="next"'}, b'{"tags":["b","a"]}'),
        Answer(200, {"Link": "<?n=2&last=c>; rel=next"}, b'{"tags":["c"]}'),
        Answer(200, {"Link": '<https://x>; rel="prev"'}, b'{"tags":null}'),
    )  # fmt: skip
    assert client.tags() == ["a", "b", "c"]
    assert isinstance(client.sender, ScriptedSender)
    assert [request.url for request in client.sender.requests[1:]] == [
        "https://r.example/v2/team/model/tags/list?last=b&n=2",
        "https://r.example/v2/team/model/tags/list?n=2&last=c",
    ]


@pytest.mark.parametrize("link", ["https://evil.example/x", "//evil.example/x", "https://["])
def test_a_page_on_another_host_is_not_fetched(link: str) -> None:
    page = Answer(200, {"Link": f'<{link}>; rel="next"'}, b'{"tags":[]}')
    with pytest.raises(RemoteRefused, match="links to"):
        answering(page).tags()


def test_pages_without_end_end() -> None:
    page = Answer(200, {"Link": '<?again>; rel="next"'}, b'{"tags":[]}')
    with pytest.raises(RemoteRefused, match="endless list"):
        repository(lambda *_: page).tags()


def test_a_list_of_tags_that_is_none_is_an_invalid_image() -> None:
    with pytest.raises(InvalidImage):
        answering(Answer(200, {}, b"[]")).tags()
    assert answering(Answer(200, {}, b'{"tags":[1,"a"]}')).tags() == ["a"]


# Referrers

ARTIFACT = make_artifact(FOUND, "application/x-report", []).manifest


def listing(*descriptors: Descriptor) -> bytes:
    return json.dumps({"manifests": [each.to_json() for each in descriptors]}).encode()


def test_the_referrers_api_is_asked_page_by_page() -> None:
    second = make_artifact(FOUND, "application/x-sbom", []).manifest.descriptor
    client = answering(
        Answer(200, {"Link": '<?page=2>; rel="next"'}, listing(ARTIFACT.descriptor)),
        Answer(200, {}, listing(second)),
        Answer(404),
    )
    assert client.referrers(FOUND.digest) == [ARTIFACT.descriptor, second]


def test_a_registry_that_notes_the_subject_itself_gets_no_fallback_tag() -> None:
    client = answering(Answer(201, {"OCI-Subject": str(FOUND.digest)}))
    client.put_manifest(ARTIFACT.descriptor, ARTIFACT.data)
    assert isinstance(client.sender, ScriptedSender)
    assert len(client.sender.requests) == 1


def test_the_fallback_index_keeps_who_is_in_it() -> None:
    first = make_artifact(FOUND, "application/x-sbom", []).manifest.descriptor
    index = listing(first)
    found = described(index, mediatypes.OCI_INDEX)
    headers = {
        "Content-Type": mediatypes.OCI_INDEX,
        "Content-Length": str(found.size),
        "Docker-Content-Digest": str(found.digest),
    }
    client = answering(Answer(201), Answer(200, headers), Answer(200, headers, index), Answer(201))
    client.put_manifest(ARTIFACT.descriptor, ARTIFACT.data)
    assert isinstance(client.sender, ScriptedSender)
    put = client.sender.requests[-1]
    assert put.url.endswith(f"/manifests/sha256-{FOUND.digest.hex}")
    assert put.body is not None
    document = json.loads(b"".join(map(bytes, put.body.open())))
    assert [each["digest"] for each in document["manifests"]] == [
        str(first.digest),
        str(ARTIFACT.descriptor.digest),
    ]


def test_a_registry_that_stores_other_bytes_is_refused() -> None:
    other = Answer(201, {"Docker-Content-Digest": str(Digest.of(b"other"))})
    with pytest.raises(RemoteRefused, match="stored manifest"):
        answering(other).put_manifest(FOUND, MANIFEST, "v1")


def test_deleting_what_is_gone_is_no_error() -> None:
    answering(Answer(404)).delete_manifest(FOUND.digest)
    answering(Answer(202)).delete_manifest(FOUND.digest)
    with pytest.raises(NotFound):
        answering(Answer(400, {}, b'{"errors":[{"code":"NAME_UNKNOWN"}]}')).delete_manifest(
            FOUND.digest
        )

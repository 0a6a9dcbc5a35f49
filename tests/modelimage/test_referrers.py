"""Lists of what is attached to a manifest: long, filtered, malformed, in the API and under the fallback tag."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelimage import cosign, mediatypes, signature_bundle
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, RemoteRefused, WeightyardError
from modelimage.layout import Layout
from modelimage.referrers import (
    MAX_REFERRERS,
    ArtifactFile,
    attach,
    gather,
    list_referrers,
    make_artifact,
)
from modelimage.registry.client import RegistryRepository
from modelimage.registry.exchange import Request, WebOrigin
from tests.modelimage.conformance import blob_content, described, manifest_of, put_image
from tests.modelimage.exchanges import Answer, ScriptedSender

KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT = described(b"the subject", mediatypes.OCI_MANIFEST)
SBOM, NOTE = "application/vnd.cyclonedx+json", "application/x-note"
# Each is an entry of a list that can't be a descriptor.
MALFORMED: tuple[object, ...] = (
    None,
    "text",
    {},
    {"mediaType": 1, "digest": str(SUBJECT.digest), "size": 1},
    {"mediaType": mediatypes.OCI_MANIFEST, "digest": "sha512:" + "0" * 128, "size": 1},
    {"mediaType": mediatypes.OCI_MANIFEST, "digest": str(SUBJECT.digest), "size": -1},
    {
        "mediaType": mediatypes.OCI_MANIFEST,
        "digest": str(SUBJECT.digest),
        "size": 1,
        "annotations": {"a": 1},
    },
)


def entry(number: int, kind: str | None = NOTE) -> dict[str, Any]:
    data = b"%d" % number
    return Descriptor(
        mediatypes.OCI_MANIFEST, Digest.of(data), len(data), artifact_type=kind
    ).to_json()


def page(*entries: object, following: str = "") -> Answer:
    link = {"Link": f'<{following}>; rel="next"'} if following else {}
    return Answer(200, link, json.dumps({"manifests": entries}).encode())


def repository(script: Callable[[Request, int], Answer | Exception]) -> RegistryRepository:
    origin = WebOrigin.parse("https://r.example")
    return RegistryRepository(ScriptedSender(script), origin, "team/model")


def requests(place: RegistryRepository) -> list[str]:
    assert isinstance(place.sender, ScriptedSender)
    return [f"{each.method} {each.url}" for each in place.sender.requests]


def fallback(index: bytes) -> Callable[[Request, int], Answer]:
    """A registry without the referrers API, whose fallback tag has this index."""
    found = described(index, mediatypes.OCI_INDEX)
    headers = {
        "Content-Type": found.media_type,
        "Content-Length": str(found.size),
        "Docker-Content-Digest": str(found.digest),
    }

    def answer(request: Request, count: int) -> Answer:
        if "/referrers/" in request.url:
            return Answer(404)
        return Answer(200, headers, b"" if request.method == "HEAD" else index)

    return answer


def test_a_malformed_entry_hides_no_other() -> None:
    told: list[WeightyardError] = []
    found = gather([entry(1), *MALFORMED, entry(2), entry(1)], leave_out=told.append)
    assert [str(each.digest) for each in found] == [entry(1)["digest"], entry(2)["digest"]]
    assert [type(each) for each in told] == [InvalidImage] * len(MALFORMED)


def test_a_list_that_is_too_long_is_cut_and_the_rest_is_not_read() -> None:
    told: list[WeightyardError] = []
    endless = (entry(number) for number in iter(int, 1))
    assert len(gather(endless, leave_out=told.append)) == 1
    (error,) = told
    assert f"{MAX_REFERRERS:,} artifacts" in error.message
    whole = gather((entry(number) for number in range(MAX_REFERRERS)), leave_out=told.append)
    assert (len(whole), len(told)) == (MAX_REFERRERS, 1)


def test_pages_after_the_cut_are_not_requested() -> None:
    def script(request: Request, count: int) -> Answer:
        start = count * 4000
        return page(*map(entry, range(start, start + 4000)), following=f"?page={count + 1}")

    place, told = repository(script), list[WeightyardError]()
    assert len(place.referrers(SUBJECT.digest, None, told.append)) == MAX_REFERRERS
    assert len(told) == 1
    assert len(requests(place)) == 3


@pytest.mark.parametrize("filters", [True, False])
def test_the_type_is_asked_for_on_every_page_and_a_registry_may_ignore_it(filters: bool) -> None:
    def script(request: Request, count: int) -> Answer:
        if "/referrers/" not in request.url:
            return Answer(404)
        query = parse_qs(urlsplit(request.url).query)
        assert query["artifactType"] == [SBOM]
        kinds = [SBOM] if filters else [NOTE, SBOM]
        entries = [entry(10 * count + number, kind) for number, kind in enumerate(kinds)]
        following = (
            f"{urlsplit(request.url).path}?artifactType={SBOM.replace('+', '%2B')}&n={count}"
        )
        return page(*entries, following=following if count < 2 else "")

    found = repository(script).referrers(SUBJECT.digest, SBOM)
    assert [each.artifact_type for each in found] == [SBOM] * 3


def test_pages_in_a_circle_end() -> None:
    place = repository(lambda *_: page(entry(1), following="?again"))
    with pytest.raises(RemoteRefused, match="endless list"):
        place.referrers(SUBJECT.digest)
    assert len(requests(place)) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404),
        Answer(405),
        Answer(200, {"Content-Type": "text/html"}, b"<html>Page not found</html>"),
        Answer(200, {}, b"[]"),
        page(),
    ],
)
def test_without_a_list_of_the_api_the_fallback_tag_is_read(answer: Answer) -> None:
    tagged = fallback(json.dumps({"manifests": [entry(1), *MALFORMED, entry(2)]}).encode())
    place = repository(
        lambda request, count: answer if "/referrers/" in request.url else tagged(request, count)
    )
    told: list[WeightyardError] = []
    assert len(place.referrers(SUBJECT.digest, None, told.append)) == 2
    assert len(told) == len(MALFORMED)


def test_what_was_attached_before_a_registry_had_the_api_is_found() -> None:
    tagged = fallback(
        json.dumps({"manifests": [entry(1, SBOM), entry(2, NOTE), entry(3, SBOM)]}).encode()
    )
    place = repository(
        lambda request, count: (
            page(entry(3, SBOM), entry(4, SBOM))
            if "/referrers/" in request.url
            else tagged(request, count)
        )
    )
    found = [str(each.digest) for each in place.referrers(SUBJECT.digest, SBOM)]
    assert found == [entry(number)["digest"] for number in (3, 4, 1)]


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"manifests":1}'])
def test_a_fallback_tag_that_is_no_index_lists_nothing_and_is_not_replaced(index: bytes) -> None:
    told: list[WeightyardError] = []
    assert repository(fallback(index)).referrers(SUBJECT.digest, None, told.append) == []
    assert [type(each) for each in told] == [InvalidImage]
    artifact = make_artifact(SUBJECT, NOTE, []).manifest
    place = repository(
        lambda request, count: Answer(201) if count == 0 else fallback(index)(request, count)
    )
    with pytest.raises(InvalidImage):
        place.put_manifest(artifact.descriptor, artifact.data)
    assert sum(each.startswith("PUT") for each in requests(place)) == 1


def test_adding_to_the_fallback_index_keeps_what_others_wrote() -> None:
    kept = [{**entry(1), "urls": ["https://elsewhere.example"]}, *MALFORMED]
    index = json.dumps({"manifests": kept}).encode()
    place = repository(
        lambda request, count: (
            Answer(201) if request.method == "PUT" else fallback(index)(request, count)
        )
    )
    artifact = make_artifact(SUBJECT, NOTE, []).manifest
    place.put_manifest(artifact.descriptor, artifact.data)
    assert isinstance(place.sender, ScriptedSender)
    body = place.sender.requests[-1].body
    assert body is not None
    written = json.loads(b"".join(map(bytes, body.open())))["manifests"]
    assert written[:-1] == kept
    assert written[-1]["digest"] == str(artifact.descriptor.digest)


def test_an_entry_without_a_type_has_that_of_its_manifest(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    subject = put_image(layout, "v1")
    layout.put_blob(blob_content(b"{}"))
    listed = []
    for kind in (SBOM, NOTE):
        config = Descriptor(kind, described(b"{}").digest, 2)
        found, data = manifest_of(config=config, subject=subject.to_json())
        layout.put_manifest(found, data)
        listed.append(Descriptor(found.media_type, found.digest, found.size).to_json())
    index = json.dumps({"mediaType": mediatypes.OCI_INDEX, "manifests": listed}).encode()
    tag = f"sha256-{subject.digest.hex}"
    layout.put_manifest(described(index, mediatypes.OCI_INDEX), index, tag)
    # As a tool without index.json's list of referrers leaves it.
    for each in listed:
        layout.unlist(Digest.parse(str(each["digest"])))
    (found,) = list_referrers(layout, subject, SBOM)
    assert str(found.digest) == listed[0]["digest"]
    assert len(list_referrers(layout, subject)) == 2


def test_a_signature_behind_many_others_is_found(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    subject = put_image(layout, "v1")
    kind = signature_bundle.MEDIA_TYPE
    for number in range(100):
        file = ArtifactFile("b.json", kind, b"%d" % number)
        attach(layout, make_artifact(subject, kind, [file]))
    attach(layout, signature_bundle.bundle_artifact(subject, KEY))
    cosign.verify(layout, subject, [KEY.public_key()])


def test_a_damaged_signature_hides_no_other_under_the_tag(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    subject = put_image(layout, "v1")
    other = ec.generate_private_key(ec.SECP256R1())
    cosign.sign(layout, layout, subject, other, name="team/model:v1")
    cosign.sign(layout, layout, subject, KEY, name="team/model:v2")
    for bundle in list_referrers(layout, subject, signature_bundle.MEDIA_TYPE):
        layout.unlist(bundle.digest)
    signatures = layout.resolve(cosign.signature_tag(subject.digest))
    document = json.loads(layout.manifest(signatures))
    first, second = document["layers"]
    document["layers"] = [{"mediaType": 1}, {**first, "size": 1}, second]
    data = json.dumps(document).encode()
    layout.put_blob(blob_content(data, described(data)))
    index = tmp_path / "layout/index.json"
    entries = json.loads(index.read_text())
    for each in entries["manifests"]:
        if each["digest"] == str(signatures.digest):
            each |= {"digest": str(Digest.of(data)), "size": len(data)}
    index.write_text(json.dumps(entries))
    cosign.verify(layout, subject, [KEY.public_key()])
    with pytest.raises(cosign.BadSignature, match="malformed descriptor"):
        cosign.verify(layout, subject, [other.public_key()])

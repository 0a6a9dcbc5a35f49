"""`copy` carries every sound attachment, and says which ones it left out: anyone who may push can attach nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelimage import canonical, cosign, mediatypes, signature_bundle
from modelimage.access import Access, open_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.layout import Layout
from modelimage.reference import parse_registry
from modelimage.referrers import ArtifactFile, attach, cosign_tags, list_referrers, make_artifact
from tests.builder.building import weightyard_here
from tests.modelimage.conformance import blob_content, described, manifest_of, put_image
from tests.servers.faulty_registry import Fault, FaultyRegistry, Seen
from tests.servers.registry import DockerRegistry

NOTE: Final = "application/x-note"


def note(layout: Layout, subject: Descriptor, text: str) -> Descriptor:
    file = ArtifactFile("note.txt", "text/plain", text.encode())
    artifact = make_artifact(subject, NOTE, [file])
    attach(layout, artifact)
    return artifact.manifest.descriptor


def listed(layout: Layout, data: bytes) -> None:
    """A document that index.json lists as an artifact, whatever it is."""
    found = described(data, mediatypes.OCI_MANIFEST)
    layout.put_blob(blob_content(data, found))
    path = layout.path / "index.json"
    index = json.loads(path.read_text())
    index["manifests"].append({**found.to_json(), "artifactType": NOTE})
    path.write_text(json.dumps(index))


def manifest(subject: Descriptor, **members: Any) -> bytes:
    _, data = manifest_of(config=described(b"{}", mediatypes.OCI_EMPTY))
    document = json.loads(data) | {"subject": subject.to_json(), "artifactType": NOTE} | members
    return canonical.to_bytes(document)


def not_json(layout: Layout, subject: Descriptor) -> None:
    listed(layout, b"{")


def no_descriptors(layout: Layout, subject: Descriptor) -> None:
    listed(layout, manifest(subject, layers=[{"digest": 1}]))


def wrong_annotations(layout: Layout, subject: Descriptor) -> None:
    listed(layout, manifest(subject, annotations={"a": 1}))


def other_digest(layout: Layout, subject: Descriptor) -> None:
    sha512 = {"mediaType": "text/plain", "digest": "sha512:" + "0" * 128, "size": 1}
    listed(layout, manifest(subject, layers=[sha512]))


def missing_file(layout: Layout, subject: Descriptor) -> None:
    listed(layout, manifest(subject, layers=[described(b"gone").to_json()]))


def short_file(layout: Layout, subject: Descriptor) -> None:
    artifact = note(layout, subject, "a text")
    (layer,) = json.loads(layout.manifest(artifact))["layers"]
    layout.blob_path(Digest.parse(layer["digest"])).write_bytes(b"a tex")


def damaged_file(layout: Layout, subject: Descriptor) -> None:
    artifact = note(layout, subject, "a text")
    (layer,) = json.loads(layout.manifest(artifact))["layers"]
    layout.blob_path(Digest.parse(layer["digest"])).write_bytes(b"b text")


def damaged_manifest(layout: Layout, subject: Descriptor) -> None:
    layout.blob_path(note(layout, subject, "a text").digest).write_bytes(b"{}")


def tag_of_cosign_at_no_manifest(layout: Layout, subject: Descriptor) -> None:
    data = b'{"layers":7}'
    found = described(data, mediatypes.OCI_MANIFEST)
    layout.put_blob(blob_content(data, found))
    path = layout.path / "index.json"
    index = json.loads(path.read_text())
    tag = {mediatypes.ANNOTATION_REF_NAME: cosign_tags(subject.digest)[1]}
    index["manifests"].append({**found.to_json(), "annotations": tag})
    path.write_text(json.dumps(index))


# What is wrong with an attachment, and the exit code that the table gives it.
UNSOUND: Final[dict[str, tuple[Callable[[Layout, Descriptor], None], int]]] = {
    each.__name__: (each, code)
    for each, code in (
        (not_json, 15),
        (no_descriptors, 15),
        (wrong_annotations, 15),
        (other_digest, 15),
        (missing_file, 3),
        (short_file, 5),
        (damaged_file, 5),
        (damaged_manifest, 5),
        (tag_of_cosign_at_no_manifest, 15),
    )
}


@pytest.fixture
def source(tmp_path: Path) -> tuple[Layout, Descriptor]:
    layout = Layout(tmp_path / "source")
    return layout, put_image(layout, "v1", b"an image")


@pytest.mark.parametrize("name", UNSOUND)
def test_what_is_sound_is_carried_and_the_rest_is_named(
    name: str,
    source: tuple[Layout, Descriptor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, code = UNSOUND[name]
    layout, subject = source
    sound = [note(layout, subject, "before")]
    spoil(layout, subject)
    sound.append(note(layout, subject, "after"))
    sound.append(note(layout, sound[0], "about a note"))
    put_image(layout, cosign_tags(subject.digest)[0], b"a signature")

    outcome = weightyard_here(
        capsys, "--json", "copy", f"oci:{layout.path}:v1", f"oci:{tmp_path / 'copy'}:v1"
    )
    assert outcome.code == code, outcome.err
    assert "left out: " in outcome.err
    assert "The image itself is complete" in outcome.err
    assert len(outcome.json["leftOut"]) == 1
    copy = Layout(tmp_path / "copy")
    assert copy.resolve("v1").digest == subject.digest
    assert copy.resolve(cosign_tags(subject.digest)[0])
    carried = [each.digest for each in list_referrers(copy, subject)]
    assert carried == [each.digest for each in sound[:2]]
    assert [each.digest for each in list_referrers(copy, sound[0])] == [sound[2].digest]

    again = weightyard_here(
        capsys, "copy", f"oci:{layout.path}:v1", f"oci:{tmp_path / 'bare'}:v1", "--no-referrers"
    )
    assert again.code == 0, again.err


def test_a_dry_run_tells_what_would_be_left_out(
    source: tuple[Layout, Descriptor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, subject = source
    not_json(layout, subject)
    target = f"oci:{tmp_path / 'copy'}:v1"
    outcome = weightyard_here(capsys, "copy", f"oci:{layout.path}:v1", target, "--dry-run")
    assert outcome.code == 15, outcome.err
    assert not (tmp_path / "copy").exists()


class Refuses(Fault):
    """The registry takes no manifest of this digest, as some take none of types that they don't know."""

    def __init__(self, digest: Digest) -> None:
        super().__init__()
        self._path = f"/manifests/{digest}"

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        if request.method != "PUT" or not request.path.endswith(self._path):
            return None
        return 400, {}, b'{"errors":[{"code":"MANIFEST_INVALID","message":"unknown type"}]}'


@pytest.mark.servers
def test_what_the_destination_refuses_is_left_out(
    source: tuple[Layout, Descriptor], capsys: pytest.CaptureFixture[str]
) -> None:
    layout, subject = source
    refused, sound = note(layout, subject, "refused"), note(layout, subject, "taken")
    with (
        DockerRegistry() as registry,
        FaultyRegistry(registry.host, Refuses(refused.digest)) as front,
    ):
        target = f"{front.host}/team/model:v1"
        outcome = weightyard_here(capsys, "--json", "copy", f"oci:{layout.path}:v1", target)
        place = open_repository(parse_registry(target), Access())
        carried = [each.digest for each in list_referrers(place, subject)]
        found = place.resolve("v1")
    assert outcome.code == 16, outcome.err
    assert [each["what"] for each in outcome.json["leftOut"]] == [str(refused.digest)]
    assert "unknown type" in outcome.json["leftOut"][0]["reason"]
    assert (found.digest, carried) == (subject.digest, [sound.digest])


def test_a_copy_takes_nobodys_signature_away(
    source: tuple[Layout, Descriptor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, subject = source
    ours, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    command = ("copy", f"oci:{layout.path}:v1", f"oci:{tmp_path / 'copy'}:v1")
    assert weightyard_here(capsys, *command).code == 0
    copy = Layout(tmp_path / "copy")
    cosign.sign(copy, copy, subject, theirs, name="mirror.example/model:v1")
    # As cosign leaves it: under its tag alone.
    for each in list_referrers(copy, subject, signature_bundle.MEDIA_TYPE):
        copy.unlist(each.digest)
    cosign.sign(layout, layout, subject, ours, name="registry.example/model:v1")
    found = []
    for _ in range(2):
        assert weightyard_here(capsys, *command).code == 0
        cosign.verify(copy, subject, [ours.public_key()])
        cosign.verify(copy, subject, [theirs.public_key()])
        found.append(copy.resolve(cosign.signature_tag(subject.digest)).digest)
    assert found[0] == found[1]
    document = json.loads(copy.manifest(copy.resolve(str(found[0]))))
    assert len(document["layers"]) == 2
    assert copy.has_blob(Descriptor.from_json(document["config"]))

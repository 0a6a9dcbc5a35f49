"""What is stored beside an image is found in every place, travels with a copy, and is verified wherever it is."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cache_agent.access.signatures import Trust
from cache_agent.config import SignatureSection
from modelimage import cosign, signature_bundle
from modelimage.companions import find_companions
from modelimage.descriptor import Descriptor
from modelimage.layout import Layout
from modelimage.push import execute, plan_push, read_tree, relayed
from modelimage.reference import LayoutReference
from modelimage.referrers import (
    Artifact,
    ArtifactFile,
    attach,
    cosign_tags,
    list_referrers,
    make_artifact,
    read_artifact,
)
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.modelimage.conformance import put_image
from tests.modelimage.test_cosign import pem, public_pem

KEY = ec.generate_private_key(ec.SECP256R1())


def note(subject: Descriptor, text: str) -> Artifact:
    file = ArtifactFile("note.txt", "text/plain", text.encode())
    return make_artifact(subject, "application/x-note", [file])


def test_companions_of_companions_and_of_tags_are_found(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    subject = put_image(layout, "v1")
    first = note(subject, "of the image")
    second = note(first.manifest.descriptor, "of the note")
    attach(layout, first)
    attach(layout, second)
    # Real cosign's manifests name no subject: their tag alone leads to them.
    tags = cosign_tags(subject.digest)
    for tag in tags:
        put_image(layout, tag, tag.encode())
    found = find_companions(layout, [read_tree(layout, subject)])
    roots = {tree.root.digest for tree in found.trees}
    assert set(found.tags) == set(tags)
    assert roots == {
        first.manifest.descriptor.digest,
        second.manifest.descriptor.digest,
        *(root.digest for root in found.tags.values()),
    }


def test_a_copy_keeps_the_signatures_of_the_index_and_of_its_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_here(single(tmp_path / "source"), f"oci:{tmp_path / 'built'}:v1", tmp_path)
    (tmp_path / "key.pem").write_bytes(pem(KEY))
    (tmp_path / "key.pub").write_bytes(public_pem(KEY))
    commands = (
        ("sign", f"oci:{tmp_path / 'built'}:v1", "--key", tmp_path / "key.pem"),
        ("copy", f"oci:{tmp_path / 'built'}:v1", f"oci:{tmp_path / 'copy'}:v2"),
        ("copy", f"oci:{tmp_path / 'built'}:v1", f"oci:{tmp_path / 'bare'}:v1", "--no-referrers"),
        ("verify", f"oci:{tmp_path / 'copy'}:v2", "--key", tmp_path / "key.pub"),
    )
    for command in commands:
        outcome = weightyard_here(capsys, *command)
        assert outcome.code == 0, outcome.err
    copy = Layout(tmp_path / "copy")
    root = copy.resolve("v2")
    for manifest in read_tree(copy, root).manifests:
        cosign.verify(copy, manifest.descriptor, [KEY.public_key()])
        assert copy.resolve(cosign.signature_tag(manifest.descriptor.digest))
    # A node that demands signatures takes the copy, and nothing else.
    section = SignatureSection(images="*", keys=[tmp_path / "key.pub"])
    trust = Trust.from_config([section], tmp_path / "notes")
    trust.check(LayoutReference(tmp_path / "copy", "v2"), copy, root)
    bare = Layout(tmp_path / "bare")
    with pytest.raises(cosign.NotSigned):
        cosign.verify(bare, bare.resolve("v1"), [KEY.public_key()])


def copied(source: Layout, target: Layout, subject: Descriptor, kind: str) -> None:
    """Copy the image and its referrers of one type, without any tag of cosign's."""
    trees = [read_tree(source, each) for each in (subject, *list_referrers(source, subject, kind))]
    for tree in trees:
        execute(
            plan_push(tree.blobs, frozenset()),
            manifests=tree.manifests,
            tags={"v1": subject.digest} if tree.root == subject else {},
            content_of=lambda blob: relayed(source, blob),
            writer=target,
        )


@pytest.mark.parametrize("kind", [cosign.ARTIFACT_TYPE, signature_bundle.MEDIA_TYPE])
def test_a_signature_is_found_as_a_referrer_alone(tmp_path: Path, kind: str) -> None:
    source, target = Layout(tmp_path / "source"), Layout(tmp_path / "target")
    subject = put_image(source, "v1")
    cosign.sign(source, source, subject, KEY, name="team/model:v1")
    copied(source, target, subject, kind)
    cosign.verify(target, subject, [KEY.public_key()])
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(cosign.BadSignature):
        cosign.verify(target, subject, [other])


def test_a_bundle_is_a_dsse_envelope_that_any_tool_can_check(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    subject = put_image(layout, "v1")
    for _ in range(2):
        cosign.sign(layout, layout, subject, KEY, name="team/model:v1")
    (referrer,) = list_referrers(layout, subject, signature_bundle.MEDIA_TYPE)
    (file,) = read_artifact(layout, referrer)
    envelope = json.loads(file.data)["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (signature,) = envelope["signatures"]
    kind = envelope["payloadType"].encode()
    signed = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
    KEY.public_key().verify(base64.b64decode(signature["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    assert json.loads(payload)["subject"] == [{"digest": {"sha256": subject.digest.hex}}]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"dsseEnvelope":{}}',
        b'{"dsseEnvelope":{"payload":1,"payloadType":"","signatures":[]}}',
        b'{"dsseEnvelope":{"payload":"!","payloadType":"","signatures":[{"sig":""}]}}',
        b'{"dsseEnvelope":{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":""}]}}',
    ],
)
def test_a_malformed_bundle_hides_no_valid_one(tmp_path: Path, document: bytes) -> None:
    layout = Layout(tmp_path / "layout")
    subject = put_image(layout, "v1")
    file = ArtifactFile("b.json", signature_bundle.MEDIA_TYPE, document)
    attach(layout, make_artifact(subject, signature_bundle.MEDIA_TYPE, [file]))
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, subject, [KEY.public_key()])
    attach(layout, signature_bundle.bundle_artifact(subject, KEY))
    cosign.verify(layout, subject, [KEY.public_key()])


def test_a_bundle_of_another_image_does_not_pass(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    subject, other = put_image(layout, "v1"), put_image(layout, "v2", b"evil")
    good = signature_bundle.bundle_artifact(subject, KEY)
    data = good.blobs[-1].data
    file = ArtifactFile("b.json", signature_bundle.MEDIA_TYPE, data)
    attach(layout, make_artifact(other, signature_bundle.MEDIA_TYPE, [file]))
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, other, [KEY.public_key()])

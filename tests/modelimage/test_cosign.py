"""Signatures: made by us and checked by openssl, made by openssl and checked by us, and what must not pass."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from modelimage import cosign, keys
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.layout import Layout
from modelimage.mediatypes import OCI_INDEX
from modelimage.publication import Document
from modelimage.referrers import (
    ArtifactFile,
    attach,
    list_referrers,
    make_artifact,
    read_artifact,
)
from tests.modelimage.conformance import put_image

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def pem(key: keys.PrivateKey, password: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def public_pem(key: keys.PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def subject(layout: Layout) -> Descriptor:
    return put_image(layout, "v1")


@pytest.mark.parametrize(
    "key",
    [KEY, ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)],
    ids=["ecdsa", "ed25519", "rsa"],
)
def test_what_is_signed_verifies_with_that_key_alone(
    layout: Layout, subject: Descriptor, key: keys.PrivateKey
) -> None:
    loaded = keys.load_private_key(pem(key))
    digest = cosign.sign(layout, layout, subject, loaded, name="team/model")
    public = keys.load_public_key(public_pem(key))
    cosign.verify(layout, subject, [OTHER.public_key(), public])
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, subject, [OTHER.public_key()])
    assert cosign.sign(layout, layout, subject, loaded, name="team/model") == digest
    (found,) = list_referrers(layout, subject, cosign.ARTIFACT_TYPE)
    assert found.digest == digest


def test_signatures_of_several_keys_stand_beside_each_other(
    layout: Layout, subject: Descriptor
) -> None:
    for key in (KEY, OTHER):
        cosign.sign(layout, layout, subject, key, name="team/model")
    for key in (KEY, OTHER):
        cosign.verify(layout, subject, [key.public_key()])


def test_an_unsigned_image_is_not_signed(layout: Layout, subject: Descriptor) -> None:
    with pytest.raises(cosign.NotSigned):
        cosign.verify(layout, subject, [KEY.public_key()])


def test_a_signature_of_another_image_does_not_pass(layout: Layout, subject: Descriptor) -> None:
    """A valid signature by an accepted key, moved below another image."""
    other = put_image(layout, "v2", b"evil")
    data = cosign.payload("team/model", subject.digest)
    encoded = base64.b64encode(keys.sign_bytes(KEY, data)).decode()
    file = ArtifactFile("p", cosign.PAYLOAD_TYPE, data, {cosign.SIGNATURE_ANNOTATION: encoded})
    stolen = make_artifact(other, cosign.ARTIFACT_TYPE, [file])
    attach(layout, stolen, cosign.signature_tag(other.digest))
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, other, [KEY.public_key()])


@pytest.mark.parametrize("signature", ["", "!", "é", base64.b64encode(b"x" * 70).decode()])
def test_a_signature_that_is_none_does_not_pass(
    layout: Layout, subject: Descriptor, signature: str
) -> None:
    file = ArtifactFile(
        "p",
        cosign.PAYLOAD_TYPE,
        cosign.payload("n", subject.digest),
        {cosign.SIGNATURE_ANNOTATION: signature},
    )
    artifact = make_artifact(subject, cosign.ARTIFACT_TYPE, [file])
    attach(layout, artifact, cosign.signature_tag(subject.digest))
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, subject, [KEY.public_key()])


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"critical": []}'],
    ids=["empty", "cut", "no text", "list", "deep", "no map"],
)
def test_a_malformed_signature_hides_no_valid_one(
    layout: Layout, subject: Descriptor, payload: bytes
) -> None:
    """Others may add signatures to the same manifest, before ours or after it."""
    cosign.sign(layout, layout, subject, KEY, name="team/model")
    tag = cosign.signature_tag(subject.digest)
    (ours,) = read_artifact(layout, layout.resolve(tag))
    bad = ArtifactFile("bad", cosign.PAYLOAD_TYPE, payload, {cosign.SIGNATURE_ANNOTATION: "é"})
    attach(layout, make_artifact(subject, cosign.ARTIFACT_TYPE, [bad, ours, bad]), tag)
    cosign.verify(layout, subject, [KEY.public_key()])
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, subject, [OTHER.public_key()])
    cosign.sign(layout, layout, subject, OTHER, name="team/model")
    cosign.verify(layout, subject, [OTHER.public_key()])


def test_a_tag_that_is_no_signature_hides_no_bundle(layout: Layout, subject: Descriptor) -> None:
    cosign.sign(layout, layout, subject, KEY, name="team/model")
    empty = Document.from_bytes(OCI_INDEX, b'{"schemaVersion": 2, "manifests": []}')
    layout.put_manifest(empty.descriptor, empty.data, cosign.signature_tag(subject.digest))
    cosign.verify(layout, subject, [KEY.public_key()])
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, subject, [OTHER.public_key()])
    other = put_image(layout, "v2", b"other")
    layout.put_manifest(empty.descriptor, empty.data, cosign.signature_tag(other.digest))
    with pytest.raises(cosign.BadSignature):
        cosign.verify(layout, other, [KEY.public_key()])


@pytest.mark.parametrize("kind", [cosign.PAYLOAD_TYPE, "application/octet-stream"])
def test_a_file_too_large_for_a_signature_hides_no_valid_one(
    layout: Layout, subject: Descriptor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelimage.referrers.MAX_FILE_BYTES", 2 << 20)
    cosign.sign(layout, layout, subject, KEY, name="team/model")
    tag = cosign.signature_tag(subject.digest)
    (ours,) = read_artifact(layout, layout.resolve(tag))
    bad = ArtifactFile("bad", kind, bytes(3 << 20), {cosign.SIGNATURE_ANNOTATION: "eA=="})
    attach(layout, make_artifact(subject, cosign.ARTIFACT_TYPE, [bad, ours]), tag)
    cosign.verify(layout, subject, [KEY.public_key()])


def test_openssl_agrees(layout: Layout, subject: Descriptor, tmp_path: Path) -> None:
    cosign.sign(layout, layout, subject, KEY, name="team/model")
    manifest = layout.manifest(layout.resolve(cosign.signature_tag(subject.digest)))
    (layer,) = json.loads(manifest)["layers"]
    payload = layout.blob_path(Digest.parse(layer["digest"]))
    signature = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    (tmp_path / "sig").write_bytes(signature)
    (tmp_path / "key.pub").write_bytes(public_pem(KEY))
    command = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "key.pub",
               "-signature", tmp_path / "sig", payload]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Verified OK"
    claim = json.loads(payload.read_bytes())["critical"]
    assert claim["image"] == {"docker-manifest-digest": str(subject.digest)}
    assert claim["type"] == "cosign container image signature"


def test_encrypted_keys_need_their_password() -> None:
    data = pem(KEY, b"secret")
    assert keys.load_private_key(data, b"secret").key_size == 256  # type: ignore[union-attr]
    for password in (None, b"wrong"):
        with pytest.raises(InvalidInput, match="password"):
            keys.load_private_key(data, password)


@pytest.mark.parametrize("tool", ["COSIGN", "SIGSTORE"])
def test_a_key_in_cosigns_own_format_is_named_as_such(tool: str) -> None:
    head, foot = (f"-----{word} ENCRYPTED {tool} PRIVATE KEY-----\n" for word in ("BEGIN", "END"))
    data = f"{head}eyJrZGYiOnsibmFtZSI6InNjcnlwdCJ9fQ==\n{foot}".encode()
    with pytest.raises(InvalidInput, match="cosign's own format"):
        keys.load_private_key(data, b"pw")


def test_what_is_no_key_or_of_no_use_is_invalid_input() -> None:
    with pytest.raises(InvalidInput):
        keys.load_private_key(b"x")
    with pytest.raises(InvalidInput):
        keys.load_public_key(b"x")
    exchange = x25519.X25519PrivateKey.generate()
    with pytest.raises(InvalidInput, match="kind"):
        keys.load_private_key(pem(exchange))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="kind"):
        keys.load_public_key(public_pem(exchange))  # type: ignore[arg-type]

"""Signs and verifies images with a key pair, offline, compatible with cosign.

The format is cosign's (sigstore/cosign, specs/SIGNATURE_SPEC.md): a "simple signing" payload with the manifest's
digest, its signature in an annotation, under the tag `sha256-<hex>.sig`. The signature manifest also has the image as
its subject, so it is listed as a referrer. Keys are PEM: ECDSA, Ed25519 or RSA. Needs the extra `sign`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage, InvalidInput, NotFound
from modelimage.publication import Document
from modelimage.referrers import (
    Artifact,
    ArtifactFile,
    attach,
    cosign_tags,
    make_artifact,
    read_artifact,
)
from modelimage.repository import ImageReader, ImageWriter

ARTIFACT_TYPE: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
# A payload names one digest.
_MAX_PAYLOAD_BYTES: Final = 1 << 20
_CLAIM: Final = "cosign container image signature"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class NotSigned(NotFound):
    """The image has no signature."""


class BadSignature(DigestMismatch):
    """The image has signatures, but none of this image by an accepted key."""


def load_private_key(pem: bytes, password: bytes | None = None) -> PrivateKey:
    """Load a PEM private key (PKCS 8), encrypted or not. Raises InvalidInput."""
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput(
            "the private key can't be read: it isn't PEM (PKCS 8), or its password is missing or wrong",
            hint="Make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem",
        ) from error
    if not isinstance(key, PrivateKey):
        raise InvalidInput("the private key is of a kind that isn't supported", hint=_KINDS)
    return key


def load_public_key(pem: bytes) -> PublicKey:
    """Load a PEM public key, such as cosign.pub. Raises InvalidInput."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput(
            "the public key can't be read: it isn't PEM",
            hint="Extract it with: openssl pkey -in key.pem -pubout -out key.pub",
        ) from error
    if not isinstance(key, PublicKey):
        raise InvalidInput("the public key is of a kind that isn't supported", hint=_KINDS)
    return key


_KINDS: Final = "Use ECDSA, Ed25519 or RSA."


def payload(name: str, digest: Digest) -> bytes:
    """The payload to sign. `name` is the image's reference at signing time; only the digest is verified."""
    return canonical.to_bytes(
        {
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": str(digest)},
                "type": _CLAIM,
            },
            "optional": None,
        }
    )


def sign_bytes(key: PrivateKey, data: bytes) -> bytes:
    """The raw signature of `data`."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data)


def is_signed_by(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is this key's signature of `data`."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def signature_tag(subject: Digest) -> str:
    """The tag where cosign looks for signatures."""
    return cosign_tags(subject)[0]


def sign(
    reader: ImageReader, writer: ImageWriter, subject: Descriptor, key: PrivateKey, *, name: str
) -> Digest:
    """Add a signature to the existing ones; return the digest of their manifest.

    Does nothing if there is already a signature by this key.
    """
    # ECDSA signatures contain a random number: signing again would add a second one on each run.
    found = _signatures(reader, subject.digest)
    if _accepted(found, subject.digest, [key.public_key()]):
        return reader.resolve(signature_tag(subject.digest)).digest
    data = payload(name, subject.digest)
    encoded = base64.b64encode(sign_bytes(key, data)).decode()
    # The signatures of others are kept: all of them are in one manifest, which this one replaces.
    mine = ArtifactFile("payload.json", PAYLOAD_TYPE, data, {SIGNATURE_ANNOTATION: encoded})
    artifact = _artifact(subject, [*found, mine])
    # cosign looks under this tag only; the subject makes registries list the signature as a referrer, too.
    attach(writer, artifact, signature_tag(subject.digest))
    return artifact.manifest.descriptor.digest


def verify(reader: ImageReader, subject: Descriptor, keys: Sequence[PublicKey]) -> None:
    """Verify. Raises NotSigned if there are none, BadSignature if none for this digest is by one of `keys`."""
    found = _signatures(reader, subject.digest)
    if not found:
        raise NotSigned(
            f"{subject.digest} isn't signed", hint="Sign it with `weightyard sign --key`."
        )
    if not _accepted(found, subject.digest, keys):
        raise BadSignature(
            f"{subject.digest} isn't signed with an accepted key",
            hint="Check which key signed the image. Don't use it until a trusted key has signed it.",
        )


def _signatures(reader: ImageReader, subject: Digest) -> list[ArtifactFile]:
    try:
        manifest = reader.resolve(signature_tag(subject))
    except NotFound:
        return []
    return read_artifact(reader, manifest, _is_payload)


def _is_payload(layer: Descriptor) -> bool:
    # Anyone who may push can add a layer to the tag: one that is no payload mustn't hide the valid ones.
    return layer.media_type == PAYLOAD_TYPE and layer.size <= _MAX_PAYLOAD_BYTES


def _accepted(
    signatures: Sequence[ArtifactFile], subject: Digest, keys: Sequence[PublicKey]
) -> bool:
    return any(
        # The payload must name this digest: a valid signature of another image could be copied under this tag.
        _names(file.data, subject) and any(is_signed_by(key, _raw(file), file.data) for key in keys)
        for file in signatures
    )


def _names(data: bytes, subject: Digest) -> bool:
    """Whether a payload is for this digest. The payload is untrusted until its signature has been verified."""
    try:
        critical = canonical.parse(data, what="a signature's payload").get("critical")
    # Anyone who may push can add a payload to the tag: one that can't be read mustn't hide the valid ones.
    except InvalidImage:
        return False
    if not isinstance(critical, dict) or critical.get("type") != _CLAIM:
        return False
    image = critical.get("image")
    return isinstance(image, dict) and image.get("docker-manifest-digest") == str(subject)


def _raw(file: ArtifactFile) -> bytes:
    try:
        return base64.b64decode(file.annotations.get(SIGNATURE_ANNOTATION, ""), validate=True)
    # A malformed signature counts as none: another one may still be valid.
    except binascii.Error:
        return b""


def _artifact(subject: Descriptor, signatures: Sequence[ArtifactFile]) -> Artifact:
    # cosign reads only the layers, but registries and scanners expect an image config as well.
    config = canonical.to_bytes(
        {
            "architecture": "",
            "config": {},
            "os": "",
            "rootfs": {
                "type": "layers",
                "diff_ids": [str(Digest.of(each.data)) for each in signatures],
            },
        }
    )
    return make_artifact(
        subject,
        ARTIFACT_TYPE,
        signatures,
        config=Document.from_bytes(mediatypes.OCI_CONFIG, config),
    )

"""Sigstore bundles of signatures made with a key pair, stored as referrers of the image that they sign.

A bundle (sigstore/protobuf-specs, sigstore_bundle.proto, version 0.3) holds a DSSE envelope (secure-systems-lab/dsse)
around an in-toto statement that names the image's digest. No transparency log: keys are the user's own. Needs the extra
`sign`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives import serialization

from modelimage import canonical, intoto
from modelimage.bounds import MALFORMED
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.keys import PrivateKey, PublicKey, is_signed_by, sign_bytes
from modelimage.referrers import Artifact, ArtifactFile, make_artifact

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
# What cosign writes for a plain signature of an image.
_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_ANNOTATIONS: Final = {
    "dev.sigstore.bundle.content": "dsse-envelope",
    "dev.sigstore.bundle.predicateType": _PREDICATE,
}


def bundle_artifact(subject: Descriptor, key: PrivateKey) -> Artifact:
    """A signature of an image's manifest, as a referrer."""
    payload = intoto.statement([("", subject.digest)], _PREDICATE, {})
    signature = sign_bytes(key, _encoded(intoto.MEDIA_TYPE, payload))
    document = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": intoto.MEDIA_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    file = ArtifactFile("signature.sigstore.json", MEDIA_TYPE, canonical.to_bytes(document))
    return make_artifact(subject, MEDIA_TYPE, [file], _ANNOTATIONS)


def is_signature(data: bytes, subject: Digest, keys: Sequence[PublicKey]) -> bool:
    """Whether a bundle is a signature of this digest by one of the keys. False for anything malformed."""
    try:
        envelope = canonical.parse(data, what="a bundle").get("dsseEnvelope")
        if not isinstance(envelope, Mapping):
            return False
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [
            base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]
        ]
        kind = str(envelope["payloadType"])
        if kind != intoto.MEDIA_TYPE or not intoto.names_subject(payload, subject, _PREDICATE):
            return False
    # Anyone who may push can attach a bundle: one that can't be read mustn't hide the valid ones.
    except (*MALFORMED, InvalidImage):
        return False
    signed = _encoded(kind, payload)
    return any(is_signed_by(key, each, signed) for key in keys for each in signatures)


def _encoded(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _hint(key: PublicKey) -> str:
    # As sigstore-go makes hints: of the key in DER, so that a PEM file's line ends don't matter.
    der: Any = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(hashlib.sha256(der).digest()).decode()

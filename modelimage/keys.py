"""Key pairs that sign images: PEM files of ECDSA, Ed25519 or RSA keys, and raw signatures. Needs the extra `sign`."""

from __future__ import annotations

import re
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from modelimage.errors import InvalidInput

# `cosign generate-key-pair` and `skopeo generate-sigstore-key`: JSON with scrypt and NaCl's secretbox inside.
_COSIGN_KEY: Final = re.compile(rb"BEGIN ENCRYPTED (?:COSIGN|SIGSTORE) PRIVATE KEY")
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def load_private_key(pem: bytes, password: bytes | None = None) -> PrivateKey:
    """Load a PEM private key (PKCS 8), encrypted or not. Raises InvalidInput."""
    if _COSIGN_KEY.search(pem):
        raise InvalidInput(
            "the private key is in cosign's own format, which only cosign and skopeo read",
            hint="Sign with a PEM key (openssl genpkey); `cosign import-key-pair --key` gives cosign the same one.",
        )
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


def sign_bytes(key: PrivateKey, data: bytes) -> bytes:
    """The raw signature of `data`."""
    # SHA-256 for every curve, and PKCS #1 v1.5 for RSA: what cosign verifies
    # with unless it is told otherwise.
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

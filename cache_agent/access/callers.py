"""Callers: the credential of a request, and the fingerprint under which its proofs are kept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelimage.errors import InvalidInput
from modelimage.registry.credentials import (
    BasicCredential,
    Credential,
    DockerConfig,
    IdentityToken,
    RegistryToken,
)

_PULL_SECRET_KEY = ".dockerconfigjson"  # noqa: S105 - a key of the secret, not the secret
_MAX_HEADER = 16 << 10


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller. `credential` None: an anonymous one."""

    credential: Credential | None = field(default=None, repr=False)


NOBODY = Caller()


def caller_of_header(authorization: str | None) -> Caller:
    """The caller of an Authorization header; NOBODY without one. Raises InvalidInput for a malformed header."""
    if authorization is None:
        return NOBODY
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    # The value is sent on to the registry: control characters in it could add headers.
    if len(authorization) <= _MAX_HEADER and value.isascii() and value.isprintable():
        if scheme.lower() == "bearer" and value:
            return Caller(RegistryToken(value))
        if scheme.lower() == "basic":
            return Caller(_basic(value))
    raise InvalidInput("malformed Authorization header", hint="Send a Bearer token or Basic.")


def caller_of_pull_secret(secrets: Mapping[str, str], registry: str, repository: str) -> Caller:
    """The caller of a pod's Kubernetes pull secret, for one repository. Raises InvalidInput.

    `secrets` holds a `.dockerconfigjson`, as image pull secrets do, or `username` and `password`, or nothing.
    """
    if _PULL_SECRET_KEY in secrets:
        config = DockerConfig.parse(secrets[_PULL_SECRET_KEY].encode(), what="the pull secret")
        # Only `auths`: credential helpers of a tenant's document would be programs that this node runs.
        return Caller(DockerConfig(config.auths).find(registry, repository))
    if "username" in secrets:
        return Caller(BasicCredential(secrets["username"], secrets.get("password", "")))
    if secrets:
        # Not NOBODY: anonymously a private image is just not found, which hides the wrong secret.
        raise InvalidInput(
            f"the volume's secret has neither {_PULL_SECRET_KEY} nor username and password",
            hint="Use a secret of type kubernetes.io/dockerconfigjson in nodePublishSecretRef.",
        )
    return NOBODY


def fingerprint(key: bytes, credential: Credential) -> str:
    """Identifies a credential without revealing it: a keyed hash, so a weak password can't be guessed from it."""
    parts: tuple[str, ...]
    match credential:
        case BasicCredential(username, password):
            parts = ("basic", username, password)
        case IdentityToken(token):
            parts = ("identity", token)
        case RegistryToken(token):
            parts = ("bearer", token)
    # Length-prefixed: no two credentials give the same text.
    text = b"".join(b"%d:%s" % (len(part.encode()), part.encode()) for part in parts)
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def _basic(value: str) -> BasicCredential:
    try:
        username, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidInput("malformed Authorization header: Basic is not base64") from error
    if not colon:
        raise InvalidInput("malformed Authorization header: Basic has no password")
    return BasicCredential(username, password)

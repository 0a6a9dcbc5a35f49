"""A token server as the distribution spec's token authentication describes it, whose tokens docker-registry verifies.

Basic credentials (GET), a password or an identity token (POST, the OAuth2 form) get a JWT for the repositories asked
for; without any, `public/` may be read. Tokens carry their certificate (x5c), which is the registry's trust root.
"""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.servers.httpserver import Handler, LoopbackServer

# docker-registry accepts tokens for a minute after they expire: ours are issued with that minute taken off
REGISTRY_LEEWAY = 60
PUBLIC = "public/"


@dataclass(frozen=True)
class TokenRequest:
    """What one client asked for; `user` is None for an anonymous one, `granted` says whether it got a token."""

    method: str
    user: str | None
    scopes: tuple[str, ...]
    granted: bool


class _Handler(Handler):
    @property
    def _tokens(self) -> TokenServer:
        return cast("TokenServer", cast("Any", self.server).owner)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._issue(self._basic_credentials(), query)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        kind = form.get("grant_type", [""])[0]
        if kind == "refresh_token":
            user = self._tokens.identity_tokens.get(form["refresh_token"][0])
            credentials = (user or "", self._tokens.users.get(user or "", ""))
        else:
            credentials = (form["username"][0], form["password"][0])
        self._issue(credentials, form)

    def _basic_credentials(self) -> tuple[str, str] | None:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user, password

    def _issue(self, credentials: tuple[str, str] | None, query: dict[str, list[str]]) -> None:
        tokens = self._tokens
        scopes = tuple(scope for given in query.get("scope", []) for scope in given.split(" "))
        user = credentials[0] if credentials else None
        allowed = credentials is None or tokens.users.get(credentials[0]) == credentials[1]
        tokens.requests.append(TokenRequest(self.command, user, scopes, allowed))
        if not allowed:
            self.answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"wrong credentials"}]}')
            return
        token = tokens.issue(user, scopes)
        body = {"token": token, "access_token": token, "expires_in": int(tokens.lifetime)}
        if user in tokens.identity_tokens.values():
            body["refresh_token"] = next(t for t, u in tokens.identity_tokens.items() if u == user)
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


class TokenServer(LoopbackServer):
    """Issues tokens that live `lifetime` seconds (changeable while it runs) and lists who asked for what."""

    HANDLER = _Handler
    ISSUER = "weightyard tests"

    def __init__(self, *, service: str, users: Mapping[str, str], lifetime: float) -> None:
        self.service = service
        self.users = dict(users)
        self.identity_tokens: dict[str, str] = {}
        self.lifetime = lifetime
        self.requests: list[TokenRequest] = []
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._certificate = _self_signed(self._key)

    @property
    def realm(self) -> str:
        """The URL that a registry's challenge names."""
        return f"{self.url}/token"

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate for the registry's `rootcertbundle`."""
        return self._certificate.public_bytes(Encoding.PEM)

    def identity_token(self, user: str) -> str:
        """Make an identity token for `user`, as `docker login` would have stored it."""
        token = secrets.token_urlsafe(12)
        self.identity_tokens[token] = user
        return token

    def issue(self, user: str | None, scopes: tuple[str, ...]) -> str:
        """A signed token for the part of `scopes` that `user` may use."""
        now = int(time.time())
        claims = {
            "iss": self.ISSUER,
            "sub": user or "",
            "aud": self.service,
            "exp": now + int(self.lifetime) - REGISTRY_LEEWAY,
            "nbf": now - 2 * REGISTRY_LEEWAY,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": [access for scope in scopes if (access := _access(user, scope))],
        }
        der = self._certificate.public_bytes(Encoding.DER)
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        signed = f"{_b64(json.dumps(head).encode())}.{_b64(json.dumps(claims).encode())}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_b64(signature)}"


def _access(user: str | None, scope: str) -> dict[str, object] | None:
    kind, rest = scope.split(":", 1)
    name, _, wanted = rest.rpartition(":")
    actions = wanted.split(",")
    if user is None:
        actions = ["pull"] if "pull" in actions and name.startswith(PUBLIC) else []
    return {"type": kind, "name": name, "actions": actions} if actions else None


def _self_signed(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weightyard tests")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

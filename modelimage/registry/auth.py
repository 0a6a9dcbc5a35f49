"""Registry tokens: requested after a 401, cached per set of scopes, renewed before they expire and when refused.

The protocol is distribution's token authentication (docs/spec/auth/token.md, oauth.md). The token is looked up for
each request, so one that expires during a transfer doesn't affect it.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from modelimage.bounds import MALFORMED, clamp
from modelimage.errors import AccessDenied, InvalidInput, RemoteRefused
from modelimage.registry import answers
from modelimage.registry.challenge import Challenge, parse_challenges
from modelimage.registry.credentials import (
    BasicCredential,
    Credential,
    IdentityToken,
    RegistryToken,
)
from modelimage.registry.exchange import Body, Request, Response, Sender, WebOrigin

# Seconds, if the token server states none (token.md).
_DEFAULT_LIFETIME: Final = 60.0
# A token that is said to live longer is renewed daily.
_MOST_LIFETIME: Final = 86400.0
# Responses are read into memory, so those of untrusted servers are bounded.
_MAX_TOKEN_BYTES: Final = 1 << 20
_CLIENT_ID: Final = "weightyard"


@dataclass(frozen=True, slots=True)
class Token:
    """An access token; `renew_at` is a time of the cache's clock."""

    value: str
    renew_at: float


def parse_token(data: bytes, now: float) -> Token:
    """Parse a token server's response. The token is renewed after 9/10 of its lifetime. Raises RemoteRefused.

    The lifetime counts from arrival, not from `issued_at`, so the two clocks need not agree.
    """
    try:
        document = json.loads(data)
        value = document.get("token") or document["access_token"]
        expires_in = document.get("expires_in")
        lifetime = _DEFAULT_LIFETIME if expires_in is None else clamp(expires_in, 0, _MOST_LIFETIME)
    except MALFORMED as error:
        raise RemoteRefused("the token server answered without a token") from error
    # It becomes part of a header: a line break would inject others.
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise RemoteRefused("the token server answered with a malformed token")
    # The last tenth is left for requests that are on their way.
    return Token(value, now + 0.9 * lifetime)


def token_request(
    challenge: Challenge,
    scopes: frozenset[str],
    credential: Credential | None,
    registry: WebOrigin,
) -> Request:
    """The request for a token that covers the scopes. Raises RemoteRefused if the challenge has no realm."""
    realm = challenge.parameters.get("realm", "")
    service = challenge.parameters.get("service", "")
    try:
        WebOrigin.parse(realm)
    except InvalidInput as error:
        raise RemoteRefused(
            f"the registry names no usable token server: {realm[:200]!r}"
        ) from error
    ordered = sorted(scopes)
    # Identity tokens are exchanged by POST (oauth.md), passwords and anonymous requests by GET (token.md).
    if isinstance(credential, IdentityToken):
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": _CLIENT_ID,
            "scope": " ".join(ordered),
            "refresh_token": credential.token,
        }
        body = Body.from_bytes(urlencode(form).encode())
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return Request("POST", realm, headers, body, named_by=registry)
    query = ([("service", service)] if service else []) + [("scope", scope) for scope in ordered]
    joiner = "&" if "?" in realm else "?"
    url = f"{realm}{joiner}{urlencode(query)}" if query else realm
    if isinstance(credential, BasicCredential):
        header = {"Authorization": basic_header(credential)}
        return Request("GET", url, header, named_by=registry)
    return Request("GET", url, named_by=registry)


def basic_header(credential: BasicCredential) -> str:
    """The Authorization header for basic authentication (RFC 7617)."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


class Authorizing:
    """A Sender that authorizes requests to one registry, and only to it."""

    def __init__(
        self,
        inner: Sender,
        registry: WebOrigin,
        credential: Callable[[], Credential | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._registry = registry
        self._find_credential = credential
        self._clock = clock
        self._challenge: Challenge | None = None
        self._tokens: dict[frozenset[str], Token] = {}
        # One token request at a time: threads that start together need the same token.
        self._lock = threading.Lock()

    def send(self, request: Request) -> Response:
        """Send with a cached token; after a 401, retry once as the challenge requires. Raises AccessDenied."""
        # Other hosts must not see this registry's token.
        if request.origin != self._registry:
            return self._inner.send(request)
        sent = self._header(request.scopes)
        response = self._inner.send(request.with_header("Authorization", sent))
        # A 401 of a redirect's target is returned: only the registry may request our credentials.
        if response.status != 401 or WebOrigin.parse(response.url) != self._registry:
            return response
        offered = parse_challenges(response.header("WWW-Authenticate") or "")
        response.discard()
        renewed = self._renew(offered, request.scopes, sent)
        response = self._inner.send(request.with_header("Authorization", renewed))
        if response.status == 401 and WebOrigin.parse(response.url) == self._registry:
            response.discard()
            raise self._refused()
        return response

    def _header(self, scopes: frozenset[str]) -> str | None:
        """The Authorization header, or None before the registry's first challenge."""
        with self._lock:
            if self._challenge is None:
                return None
            return self._authorization(self._challenge, scopes)

    def _renew(self, offered: list[Challenge], scopes: frozenset[str], sent: str | None) -> str:
        """An Authorization header other than the refused one. Raises AccessDenied if there is none."""
        with self._lock:
            self._challenge = self._choose(offered)
            cached = self._tokens.get(scopes)
            # Only the refused token is dropped: another thread may have renewed it while this one waited for the lock.
            if cached is not None and f"Bearer {cached.value}" == sent:
                del self._tokens[scopes]
            header = self._authorization(self._challenge, scopes)
        if header == sent:
            raise self._refused()
        return header

    def _choose(self, offered: list[Challenge]) -> Challenge:
        # Bearer first: with it, the password is sent only to the token server and not with each request.
        for scheme in ("bearer", "basic"):
            for challenge in offered:
                if challenge.scheme == scheme:
                    return challenge
        raise self._denied("requires an unsupported kind of credentials")

    def _authorization(self, challenge: Challenge, scopes: frozenset[str]) -> str:
        cached = self._tokens.get(scopes)
        if challenge.scheme == "bearer" and cached and cached.renew_at > self._clock():
            return f"Bearer {cached.value}"
        credential = self._find_credential()
        if isinstance(credential, RegistryToken):
            return f"Bearer {credential.token}"
        if challenge.scheme == "bearer":
            request = token_request(challenge, scopes, credential, self._registry)
            token = self._fetch(request, credential)
            self._tokens[scopes] = token
            return f"Bearer {token.value}"
        if isinstance(credential, BasicCredential):
            return basic_header(credential)
        raise self._denied("requires a user name and password")

    def _fetch(self, request: Request, credential: Credential | None) -> Token:
        server = request.origin
        # A registry must not be able to make us send its password unencrypted.
        if credential and self._registry.encrypted and not server.encrypted:
            raise RemoteRefused(
                f"{self._registry} asks for its credentials to be sent to {server} unencrypted"
            )
        response = self._inner.send(request)
        if response.status in (401, 403):
            response.discard()
            raise self._refused()
        if response.status != 200:
            raise answers.refusal(response, f"token server {server}", self._registry)
        return parse_token(response.read(_MAX_TOKEN_BYTES), self._clock())

    def _refused(self) -> AccessDenied:
        known = self._find_credential() is not None
        return self._denied("rejects the credentials" if known else "requires credentials")

    def _denied(self, what: str) -> AccessDenied:
        host = str(self._registry).partition("://")[2]
        return AccessDenied(
            f"{host} {what}",
            hint=f"Log in with `docker login {host}`, or give --username and --password-stdin.",
        )

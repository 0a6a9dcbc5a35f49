"""Which credentials and tokens the registry client sends where, decided without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from modelimage.errors import AccessDenied, RemoteRefused
from modelimage.registry.auth import Authorizing, parse_token, token_request
from modelimage.registry.challenge import Challenge
from modelimage.registry.credentials import (
    BasicCredential,
    Credential,
    IdentityToken,
    RegistryToken,
)
from modelimage.registry.exchange import Request, WebOrigin
from tests.modelimage.exchanges import Answer, ScriptedSender, VirtualTime

HOST = "https://r.example"
ALICE = BasicCredential("alice", "secret")
PULL = frozenset({"repository:m:pull"})
BEARER = {
    "WWW-Authenticate": 'Bearer realm="https://auth.example/token",service="r.example",scope="x"'
}


class TokenWorld:
    """A registry that takes one token at a time, and its token server."""

    def __init__(self, challenge: Mapping[str, str] = BEARER, lifetime: float = 100) -> None:
        self.time = VirtualTime()
        self.challenge = challenge
        self.lifetime = lifetime
        self.accepted = "Bearer t1"
        self.issued = 0
        self.sender = ScriptedSender(self._answer)

    def _answer(self, request: Request, _: int) -> Answer:
        if request.origin == WebOrigin.parse(HOST):
            given = request.headers.get("Authorization")
            return Answer(200) if given == self.accepted else Answer(401, self.challenge)
        self.issued += 1
        body = {"token": f"t{self.issued}", "expires_in": self.lifetime}
        return Answer(200, {}, json.dumps(body).encode())

    def client(self, credential: Credential | None = ALICE) -> Authorizing:
        return Authorizing(self.sender, WebOrigin.parse(HOST), lambda: credential, self.time.clock)


GET = Request("GET", f"{HOST}/v2/m/x", scopes=PULL)


def test_a_token_is_fetched_once_and_used_until_it_is_due() -> None:
    world = TokenWorld()
    client = world.client()
    for _ in range(3):
        assert client.send(GET).status == 200
    assert world.issued == 1
    world.time.now = 91
    world.accepted = "Bearer t2"
    assert client.send(GET).status == 200
    assert world.issued == 2
    refused = [answer for answer in world.sender.answers if answer.status == 401]
    assert len(refused) == 1, "only the first request went out without a good token"


def test_a_token_that_is_refused_early_is_renewed() -> None:
    world = TokenWorld()
    client = world.client()
    client.send(GET)
    world.accepted = "Bearer t2"
    assert client.send(GET).status == 200
    assert world.issued == 2


def test_each_set_of_scopes_has_its_token() -> None:
    world = TokenWorld()
    client = world.client()
    client.send(GET)
    world.accepted = "Bearer t2"
    push = Request("PUT", f"{HOST}/v2/m/x", scopes=frozenset({"repository:m:pull,push"}))
    assert client.send(push).status == 200
    asked = [request.url for request in world.sender.requests if "auth.example" in request.url]
    assert asked == [
        "https://auth.example/token?service=r.example&scope=repository%3Am%3Apull",
        "https://auth.example/token?service=r.example&scope=repository%3Am%3Apull%2Cpush",
    ]


def test_a_registry_that_refuses_every_token_denies_access() -> None:
    world = TokenWorld()
    world.accepted = "none"
    with pytest.raises(AccessDenied, match="rejects the credentials"):
        world.client().send(GET)
    with pytest.raises(AccessDenied, match="requires credentials"):
        world.client(None).send(GET)


def test_basic_credentials_are_sent_where_asked_for_and_only_there() -> None:
    world = TokenWorld({"WWW-Authenticate": 'Basic realm="r"'})
    world.accepted = "Basic YWxpY2U6c2VjcmV0"
    assert world.client().send(GET).status == 200
    other = Request("GET", "https://storage.example/x")
    world.client().send(other)
    assert "Authorization" not in world.sender.requests[-1].headers
    with pytest.raises(AccessDenied, match="user name and password"):
        world.client(None).send(GET)


def test_a_registry_token_is_sent_as_it_is() -> None:
    world = TokenWorld()
    world.accepted = "Bearer mine"
    assert world.client(RegistryToken("mine")).send(GET).status == 200
    with pytest.raises(AccessDenied):
        world.client(RegistryToken("stale")).send(GET)


def test_the_401_of_a_storage_host_is_no_challenge_to_us() -> None:
    foreign = Answer(401, BEARER, url="https://storage.example/x")
    sender = ScriptedSender(lambda *_: foreign)
    client = Authorizing(sender, WebOrigin.parse(HOST), lambda: ALICE)
    assert client.send(GET).status == 401
    assert len(sender.requests) == 1


@pytest.mark.parametrize(
    "challenge",
    [{}, {"WWW-Authenticate": "Negotiate"}],
)
def test_a_challenge_that_we_cannot_meet_denies_access(challenge: Mapping[str, str]) -> None:
    with pytest.raises(AccessDenied, match="unsupported"):
        TokenWorld(challenge).client().send(GET)


def test_credentials_are_not_sent_to_a_token_server_in_clear() -> None:
    plain = {"WWW-Authenticate": 'Bearer realm="http://auth.example/token"'}
    with pytest.raises(RemoteRefused, match="unencrypted"):
        TokenWorld(plain).client().send(GET)


@pytest.mark.parametrize("realm", ["", "auth.example/token", "ftp://x/"])
def test_a_challenge_without_a_usable_realm_is_refused(realm: str) -> None:
    with pytest.raises(RemoteRefused, match="token server"):
        token_request(Challenge("bearer", {"realm": realm}), PULL, None, WebOrigin.parse(GET.url))


def test_an_identity_token_goes_into_the_body_not_the_url() -> None:
    challenge = Challenge("bearer", {"realm": "https://auth.example/t", "service": "s"})
    request = token_request(challenge, PULL, IdentityToken("refresh"), WebOrigin.parse(GET.url))
    assert request.body is not None
    form = b"".join(bytes(piece) for piece in request.body.open())
    assert (request.method, request.url) == ("POST", "https://auth.example/t")
    assert b"refresh_token=refresh" in form
    assert b"scope=repository%3Am%3Apull" in form


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"token":""}', b'{"token":5}', b'{"token":"a\\nb"}', b'{"token":"a","expires_in":"x"}'],
)  # fmt: skip
def test_a_token_answer_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteRefused):
        parse_token(data, 0)


def test_a_token_without_lifetime_is_good_for_a_minute() -> None:
    assert parse_token(b'{"access_token":"a"}', 100.0).renew_at == 154.0

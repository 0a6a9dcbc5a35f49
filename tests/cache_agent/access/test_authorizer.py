"""The gate: who is asked what, what is kept of it, and for whom."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.access.authorizer import Admission, Authorizer, Refused
from cache_agent.access.callers import (
    NOBODY,
    Caller,
    caller_of_header,
    caller_of_pull_secret,
    fingerprint,
)
from cache_agent.access.decide import CacheTTL, UpstreamAnswer
from modelimage.allowed_registries import AllowedRegistries, RegistryNotAllowed
from modelimage.errors import InvalidInput, NotFound, Unreachable
from modelimage.registry.credentials import (
    BasicCredential,
    Credential,
    IdentityToken,
    RegistryToken,
)

ALICE = Caller(BasicCredential("alice", "wonderland"))
BOB = Caller(BasicCredential("bob", "builder"))
RULES = CacheTTL(lifetime=300, refusal=10, grace=1000)


@dataclass
class Owner:
    """The owner of a place: says what it is told to, and notes who asked."""

    answers: dict[Credential | None, UpstreamAnswer]
    asked: list[Credential | None] = field(default_factory=list)

    def __call__(self, credential: Credential | None) -> UpstreamAnswer:
        self.asked.append(credential)
        return self.answers.get(credential, UpstreamAnswer.REFUSED)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def private_to(caller: Caller) -> Owner:
    return Owner({caller.credential: UpstreamAnswer.ALLOWED})


def test_a_private_place_opens_to_its_readers_alone() -> None:
    gate, owner = Authorizer(Clock(), RULES), private_to(ALICE)
    assert gate.admit("reg/m", ALICE, owner).credential == ALICE.credential
    for stranger in (BOB, NOBODY, Caller(BasicCredential("alice", "Wonderland"))):
        with pytest.raises(Refused):
            gate.admit("reg/m", stranger, owner)


def test_a_proof_holds_for_its_place_and_credential_only() -> None:
    gate, owner = Authorizer(Clock(), RULES), private_to(ALICE)
    gate.admit("reg/m", ALICE, owner)
    for place in ("reg/n", "other/m", "reg/m/x"):
        with pytest.raises(Refused):
            gate.admit(place, ALICE, Owner({}))


def test_a_proof_is_asked_for_once_until_it_expires() -> None:
    clock = Clock()
    gate, owner = Authorizer(clock, RULES), private_to(ALICE)
    for _ in range(5):
        gate.admit("reg/m", ALICE, owner)
    assert owner.asked == [None, ALICE.credential]
    clock.now += 300
    gate.admit("reg/m", ALICE, owner)
    assert owner.asked.count(ALICE.credential) == 2


def test_what_is_known_is_what_was_asked_for_and_has_not_expired() -> None:
    clock, owner = Clock(), private_to(ALICE)
    gate = Authorizer(clock, RULES)
    assert gate.known("reg/a", ALICE) is None
    admitted = gate.admit("reg/a", ALICE, owner)
    asked = len(owner.asked)
    assert gate.known("reg/a", ALICE) == admitted
    for place, caller in (("reg/a", BOB), ("reg/a", NOBODY), ("reg/b", ALICE)):
        assert gate.known(place, caller) is None
    clock.now += 300
    assert gate.known("reg/a", ALICE) is None
    assert len(owner.asked) == asked
    gate.admit("reg/open", NOBODY, Owner({None: UpstreamAnswer.ALLOWED}))
    assert [gate.known("reg/open", each) for each in (NOBODY, BOB)] == [Admission(None)] * 2


def test_revocation_ends_access_when_the_proof_expires() -> None:
    clock = Clock()
    gate, owner = Authorizer(clock, RULES), private_to(ALICE)
    gate.admit("reg/m", ALICE, owner)
    owner.answers.clear()
    clock.now += 300
    with pytest.raises(Refused):
        gate.admit("reg/m", ALICE, owner)


def test_what_is_public_is_public_for_all_and_asked_without_credentials() -> None:
    gate, owner = Authorizer(Clock(), RULES), Owner({None: UpstreamAnswer.ALLOWED})
    for caller in (ALICE, BOB, NOBODY):
        assert gate.admit("reg/m", caller, owner).credential is None
    assert owner.asked == [None]


def test_an_owner_away_leaves_what_was_proved_for_a_while() -> None:
    clock = Clock()
    gate = Authorizer(clock, RULES)
    gate.admit("reg/m", ALICE, private_to(ALICE))
    away = Owner(
        dict.fromkeys((None, ALICE.credential, BOB.credential), UpstreamAnswer.UNREACHABLE)
    )
    clock.now += 1200
    assert gate.admit("reg/m", ALICE, away).credential == ALICE.credential
    with pytest.raises(Unreachable):
        gate.admit("reg/m", BOB, away)
    clock.now += 200
    with pytest.raises(Unreachable):
        gate.admit("reg/m", ALICE, away)


def test_what_hides_itself_is_not_found() -> None:
    gate = Authorizer(Clock(), RULES)
    with pytest.raises(NotFound):
        gate.admit(
            "reg/m",
            BOB,
            Owner({None: UpstreamAnswer.ABSENT, BOB.credential: UpstreamAnswer.ABSENT}),
        )


def test_callers_that_come_together_ask_once() -> None:
    gate, owner = Authorizer(Clock(), RULES), private_to(ALICE)
    threads = [threading.Thread(target=gate.admit, args=("reg/m", ALICE, owner)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert owner.asked == [None, ALICE.credential]


credentials = st.one_of(
    st.builds(BasicCredential, st.text(max_size=5), st.text(max_size=5)),
    st.builds(IdentityToken, st.text(max_size=5)),
    st.builds(RegistryToken, st.text(max_size=5)),
)


@given(credentials, credentials)
def test_different_credentials_have_different_fingerprints(
    one: Credential, other: Credential
) -> None:
    same = fingerprint(b"key", one) == fingerprint(b"key", other)
    assert same == (one == other)


def test_a_caller_is_not_printed() -> None:
    assert "wonderland" not in repr(ALICE) + str(ALICE)


@given(st.text(max_size=60))
def test_any_header_makes_a_caller_or_is_refused(header: str) -> None:
    with suppress(InvalidInput):
        assert caller_of_header(header).credential is not None


def test_headers() -> None:
    assert caller_of_header(None) == NOBODY
    assert caller_of_header("Bearer abc").credential == RegistryToken("abc")
    assert caller_of_header("basic YTpiOmM=").credential == BasicCredential("a", "b:c")


def test_a_pull_secret_is_for_its_registry_and_runs_no_program() -> None:
    secret = {
        ".dockerconfigjson": '{"auths": {"reg.test": {"username": "alice", "password": "wonderland"}},'
        ' "credsStore": "evil", "credHelpers": {"reg.test": "evil"}}'
    }
    assert caller_of_pull_secret(secret, "reg.test", "m") == ALICE
    assert caller_of_pull_secret(secret, "other.test", "m") == NOBODY
    assert caller_of_pull_secret({}, "reg.test", "m") == NOBODY
    with pytest.raises(InvalidInput):
        caller_of_pull_secret({"token": "x"}, "reg.test", "m")
    with pytest.raises(InvalidInput):
        caller_of_pull_secret({".dockerconfigjson": "{"}, "reg.test", "m")


def test_registries_are_listed_by_host_and_port() -> None:
    allowed = AllowedRegistries.from_config(["reg.test", "*.corp.test", "127.0.0.1:5000"])
    for registry in ("reg.test", "a.corp.test", "REG.test", "127.0.0.1:5000"):
        allowed.require(registry)
    for registry in (
        "evil.test",
        "a.b.corp.test",
        "corp.test",
        "reg.test:80",
        "169.254.169.254",
        "",
    ):
        with pytest.raises(RegistryNotAllowed):
            allowed.require(registry)
    assert "ghcr.io" in AllowedRegistries.from_config([])
    assert "localhost" not in AllowedRegistries.from_config([])

"""The registry client keeps the contract on real registries, with each kind of authorization."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from modelimage.access import Access, open_image_repository, open_reader, open_repository
from modelimage.digest import Digest
from modelimage.errors import AccessDenied
from modelimage.reference import RegistryReference
from modelimage.registry.credentials import BasicCredential, ExplicitCredential, IdentityToken
from tests.modelimage.conformance import BLOB, Place, RepositoryContract, put_image
from tests.servers.fixtures import USERS
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry, TokenAuthRegistry

pytestmark = pytest.mark.servers


def place_in(server: DockerRegistry, repository: str, access: Access) -> Place:
    reference = RegistryReference(server.host, repository)

    def damage(digest: Digest, data: bytes) -> None:
        server.blob_path(str(digest)).write_bytes(data)

    return Place(
        lambda: open_reader(reference, access),
        lambda: open_image_repository(reference, access),
        damage,
    )


def as_alice(server: DockerRegistry) -> Access:
    return Access(ExplicitCredential(server.host, BasicCredential("alice", USERS["alice"])))


# The contract damages what it stored, so these servers' storage is read by no other test.


@pytest.fixture(scope="module")
def own_registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as server:
        yield server


class TestAnonymousRegistry(RepositoryContract):
    @pytest.fixture
    def place(self, own_registry: DockerRegistry, unique_name: Callable[[str], str]) -> Place:
        return place_in(own_registry, unique_name("team/model"), Access())


@pytest.fixture(scope="module")
def own_basic_registry() -> Iterator[DockerRegistry]:
    with DockerRegistry(users=USERS) as server:
        yield server


class TestBasicAuthRegistry(RepositoryContract):
    @pytest.fixture
    def place(self, own_basic_registry: DockerRegistry, unique_name: Callable[[str], str]) -> Place:
        return place_in(own_basic_registry, unique_name("team/model"), as_alice(own_basic_registry))


@pytest.fixture(scope="module")
def own_token_registry() -> Iterator[DockerRegistry]:
    with TokenAuthRegistry(users=USERS) as server:
        yield server


class TestTokenAuthRegistry(RepositoryContract):
    @pytest.fixture
    def place(self, own_token_registry: DockerRegistry, unique_name: Callable[[str], str]) -> Place:
        return place_in(own_token_registry, unique_name("team/model"), as_alice(own_token_registry))


@pytest.mark.parametrize("kind", ["basic_registry", "token_registry"])
def test_without_or_with_wrong_credentials_access_is_denied(
    kind: str, request: pytest.FixtureRequest, unique_name: Callable[[str], str]
) -> None:
    server = request.getfixturevalue(kind)
    reference = RegistryReference(server.host, unique_name("private"))
    put_image(open_image_repository(reference, as_alice(server)), "v1")
    wrong = ExplicitCredential(server.host, BasicCredential("alice", "guess"))
    for access in (Access(), Access(wrong)):
        reader = open_reader(reference, access)
        with pytest.raises(AccessDenied):
            reader.tags()
        with pytest.raises(AccessDenied) as caught:
            reader.resolve("v1")
        assert server.host in caught.value.message
        assert "docker login" in str(caught.value.hint)
        assert "guess" not in f"{caught.value!r} {caught.value.hint}"


def test_a_public_repository_is_read_without_an_account(
    token_registry: TokenAuthRegistry, unique_name: Callable[[str], str]
) -> None:
    reference = RegistryReference(token_registry.host, unique_name("public/model"))
    descriptor = put_image(open_image_repository(reference, as_alice(token_registry)), "v1")
    assert open_reader(reference, Access()).resolve("v1").digest == descriptor.digest
    with pytest.raises(AccessDenied):
        put_image(open_image_repository(reference, Access()), "v2", b"new")


def test_an_identity_token_is_exchanged(
    token_registry: TokenAuthRegistry, unique_name: Callable[[str], str]
) -> None:
    token = IdentityToken(token_registry.tokens.identity_token("bob"))
    access = Access(ExplicitCredential(token_registry.host, token))
    reference = RegistryReference(token_registry.host, unique_name("team/model"))
    put_image(open_image_repository(reference, access), "v1")
    mine = [r for r in token_registry.tokens.requests if reference.repository in str(r.scopes)]
    assert {(r.method, r.user) for r in mine} == {("POST", "bob")}


def test_one_token_serves_many_requests(
    token_registry: TokenAuthRegistry, unique_name: Callable[[str], str]
) -> None:
    reference = RegistryReference(token_registry.host, unique_name("team/model"))
    writer = open_repository(reference, as_alice(token_registry))
    put_image(writer, "v1")
    put_image(writer, "v2", BLOB[1:])
    mine = [r for r in token_registry.tokens.requests if reference.repository in str(r.scopes)]
    assert [r.scopes for r in mine] == [(f"repository:{reference.repository}:pull,push",)]


def test_a_token_that_expires_between_requests_is_renewed(
    unique_name: Callable[[str], str],
) -> None:
    # Already over when it is issued: the client asks for a new one each time, the registry rejects each.
    with TokenAuthRegistry(users=USERS, lifetime=-5) as server:
        reference = RegistryReference(server.host, unique_name("team/model"))
        writer = open_repository(reference, as_alice(server))
        with pytest.raises(AccessDenied, match="rejects"):
            put_image(writer, "v1")
        server.tokens.lifetime = 300
        put_image(writer, "v1")
        assert writer.tags() == ["v1"]


def test_connections_are_reused(
    registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    """Reading a blob to its end gives its connection back: 20 blobs, one client port."""
    name = unique_name("team/model")
    repository = open_repository(RegistryReference(registry.host, name), Access())
    descriptor = put_image(repository, "v1")
    for _ in range(20):
        repository.manifest(descriptor)

    def noted() -> list[str] | None:
        """A registry notes an answer after it was given."""
        ports = _client_ports(registry, f"/v2/{name}/manifests/{descriptor.digest}")
        return ports if len(ports) >= 20 else None

    assert len(set(wait_until(noted, what="notes of 20 answers"))) == 1


def _client_ports(server: DockerRegistry, path: str) -> list[str]:
    """The port that each request for a path came from, as the registry's log has them."""
    lines = [line.split() for line in server.log_text().splitlines()]
    asked = ("http.request.method=GET", f'http.request.uri="{path}"')
    return [
        next(word for word in words if word.startswith("http.request.remoteaddr="))
        for words in lines
        if all(each in words for each in asked) and "http.response.status=200" in words
    ]

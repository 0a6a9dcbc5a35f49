"""The registry client on bad days, with a real registry behind a proxy that fails by name."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from modelimage.access import Access, open_repository
from modelimage.errors import DigestMismatch, NotFound, RemoteRefused, Unreachable
from modelimage.ranges import ByteRange
from modelimage.reference import RegistryReference
from modelimage.registry.client import RegistryRepository, RepositoryOptions
from modelimage.registry.connections import Connections
from modelimage.registry.credentials import BasicCredential, ExplicitCredential
from modelimage.registry.network_options import Timeouts, TlsOptions
from modelimage.registry.profiles import RegistryProfile, UploadStyle
from modelimage.registry.retry import HostPauses
from modelimage.registry.upload_state import UploadStates
from modelimage.repository import BlobContent
from modelimage.resolve import read_blob
from tests.modelimage.conformance import BLOB, blob_content, described, put_image, read_all
from tests.modelimage.exchanges import VirtualTime
from tests.servers.faulty_registry import (
    BrokenUpload,
    BufferedUploads,
    ExpiringToken,
    Fault,
    FaultyRegistry,
    ForeignRedirect,
    IgnoredRange,
    LateAnswer,
    LostUpload,
    NoChunks,
    RateLimitDate,
    RateLimitSeconds,
    Seen,
    Stall,
    TruncatedBody,
    WrongBytes,
)
from tests.servers.fixtures import USERS
from tests.servers.registry import DockerRegistry, TokenAuthRegistry
from tests.servers.rejecting_storage import RejectingStorage

pytestmark = pytest.mark.servers

PATIENT = Timeouts(stall=24 * 3600.0)
CHUNK = 100_000
SMALL_CHUNKS = RegistryProfile("tests", ("*",), UploadStyle.CHUNKED, chunk_bytes=CHUNK)
IN_ONE = RegistryProfile("tests", ("*",), UploadStyle.MONOLITHIC)


def without_waiting(timeouts: Timeouts | None = None) -> Connections:
    """Connections whose clock only their own waiting moves."""
    time = VirtualTime(datetime.now(UTC))
    return Connections(
        environment=time.environment(), pauses=HostPauses(time.clock), timeouts=timeouts
    )


Opener = Callable[..., tuple[FaultyRegistry, RegistryRepository]]


@pytest.fixture
def through(registry: DockerRegistry, unique_name: Callable[[str], str]) -> Iterator[Opener]:
    """Open a repository through a proxy with faults; it can be opened again, as another process would."""
    started: list[FaultyRegistry] = []
    name = unique_name("faulty/model")

    def open_through(
        *faults: Fault,
        profile: RegistryProfile = SMALL_CHUNKS,
        memory: UploadStates | None = None,
        access: Access | None = None,
        server: DockerRegistry = registry,
        timeouts: Timeouts | None = None,
    ) -> tuple[FaultyRegistry, RegistryRepository]:
        proxy = FaultyRegistry(server.host, *faults)
        proxy.__enter__()
        started.append(proxy)
        connections = without_waiting(timeouts)
        chosen = replace(access or Access(), connections=connections)
        return proxy, repository_at(proxy.host, name, chosen, profile, memory or UploadStates())

    yield open_through
    for proxy in started:
        proxy.__exit__()


def repository_at(
    host: str, name: str, access: Access, profile: RegistryProfile, memory: UploadStates
) -> RegistryRepository:
    opened = open_repository(RegistryReference(host, name), access)
    options = RepositoryOptions(access.connections.backoff, memory, profile=profile)
    return RegistryRepository(opened.sender, opened.origin, name, options)


def stream_to_end(repository: RegistryRepository, wanted: ByteRange | None = None) -> int:
    """How many bytes arrive before the stream ends or fails."""
    count, buffer = 0, memoryview(bytearray(10_000))
    with repository.blob(described(BLOB), wanted) as stream:
        while got := stream.readinto(buffer):
            count += got
    return count


# Reading


def test_a_truncated_body_is_unreachable_not_short(through: Opener) -> None:
    _, repository = through(TruncatedBody(after=300_000))
    repository.put_blob(blob_content(BLOB))
    with pytest.raises(Unreachable, match="was cut off with"):
        stream_to_end(repository)
    assert stream_to_end(repository) == len(BLOB)


def test_wrong_bytes_are_found_by_their_digest(through: Opener) -> None:
    _, repository = through(WrongBytes())
    repository.put_blob(blob_content(BLOB))
    with pytest.raises(DigestMismatch, match="other bytes"):
        read_blob(repository, described(BLOB), limit=len(BLOB))
    assert read_blob(repository, described(BLOB), limit=len(BLOB)) == BLOB


def test_a_registry_that_ignores_ranges_is_refused_before_a_byte_is_used(through: Opener) -> None:
    _, repository = through(IgnoredRange())
    repository.put_blob(blob_content(BLOB))
    with pytest.raises(RemoteRefused, match="whole blob"):
        stream_to_end(repository, ByteRange(5, 500))
    assert stream_to_end(repository, ByteRange(0, len(BLOB))) == len(BLOB)


def test_a_stall_is_unreachable_after_the_time_without_progress(through: Opener) -> None:
    _, repository = through()
    repository.put_blob(blob_content(BLOB))
    _, repository = through(Stall(after=200_000), timeouts=Timeouts(stall=0.5))
    with pytest.raises(Unreachable, match="no progress"):
        stream_to_end(repository)


def test_a_registry_that_always_answers_late_is_waited_for(through: Opener) -> None:
    _, repository = through(LateAnswer(seconds=1.0), timeouts=Timeouts(stall=0.5))
    with pytest.raises(NotFound):
        repository.resolve("v1")


def test_what_has_come_is_given_at_once_however_large_the_buffer(through: Opener) -> None:
    """So that a slow sender is seen to make progress."""
    _, repository = through(Stall(after=200_000), timeouts=PATIENT)
    repository.put_blob(blob_content(BLOB))
    with repository.blob(described(BLOB)) as stream:
        assert 0 < stream.readinto(memoryview(bytearray(len(BLOB)))) <= 200_000


def test_closing_a_stream_ends_a_read_that_waits(through: Opener) -> None:
    """`close` frees the connection; from another thread too, which ends a pending `readinto`."""
    _, repository = through(Stall(after=200_000), timeouts=PATIENT)
    repository.put_blob(blob_content(BLOB))
    outcome: list[BaseException] = []
    buffer = memoryview(bytearray(10_000))
    arrived = threading.Event()
    with repository.blob(described(BLOB)) as stream:

        def read() -> None:
            count = 0
            try:
                while True:
                    count += stream.readinto(buffer)
                    if count == 200_000:
                        arrived.set()
            except Unreachable as error:
                outcome.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        arrived.wait()
        stream.close()
        reader.join()
    assert "was closed" in str(outcome[0])


def test_credentials_do_not_follow_a_redirect_to_another_host(
    through: Opener, token_registry: TokenAuthRegistry
) -> None:
    access = alice_everywhere()
    with RejectingStorage(token_registry.host) as storage:
        proxy, repository = through(ForeignRedirect(storage), server=token_registry, access=access)
        repository.put_blob(blob_content(BLOB))
        scope = f"repository:{repository.repository}:pull"
        storage.credentials = {
            "Authorization": f"Bearer {token_registry.tokens.issue('alice', (scope,))}"
        }
        assert read_all(repository, described(BLOB)) == BLOB
        assert read_all(repository, described(BLOB), ByteRange(7, 70_000)) == BLOB[7:70_000]
    assert any("Authorization" in request.headers for request in proxy.seen if request.is_blob)


class AliceEverywhere:
    """Alice's credentials for whichever port a proxy got."""

    def find(self, registry: str, repository: str) -> BasicCredential:
        return BasicCredential("alice", USERS["alice"])


def alice_everywhere() -> Access:
    return Access(AliceEverywhere())


@pytest.mark.parametrize("limit", [RateLimitSeconds, RateLimitDate])
def test_a_limited_rate_is_waited_out(through: Opener, limit: type[RateLimitSeconds]) -> None:
    _, repository = through()
    descriptor = put_image(repository, "v1")
    proxy, repository = through(limit(1, times=2))
    assert repository.resolve("v1").digest == descriptor.digest
    assert [request.method for request in proxy.seen] == ["HEAD"] * 3


def test_a_dead_registry_is_unreachable() -> None:
    access = Access(connections=without_waiting())
    with socket.socket() as taken:  # a port on which nobody listens, nor can meanwhile
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        repository = open_repository(RegistryReference(host, "m"), access)
        with pytest.raises(Unreachable, match="refused"):
            repository.resolve("v1")


def test_plain_http_spoken_as_tls_says_what_to_do(registry: DockerRegistry) -> None:
    opened = open_repository(RegistryReference(registry.host, "m"), Access())
    sender = without_waiting().sender(TlsOptions())
    origin = replace(opened.origin, scheme="https")
    with pytest.raises((RemoteRefused, Unreachable)) as caught:
        RegistryRepository(sender, origin, "m").tags()
    assert caught.value.hint


# Writing


def test_a_large_blob_goes_in_chunks_and_a_small_one_in_one_request(through: Opener) -> None:
    proxy, repository = through()
    repository.put_blob(blob_content(BLOB))
    assert read_all(repository, described(BLOB)) == BLOB
    sent = [request.length for request in proxy.seen if request.is_upload]
    assert sent == [CHUNK] * (len(BLOB) // CHUNK) + [len(BLOB) % CHUNK, 0]
    proxy.seen.clear()
    repository.put_blob(blob_content(BLOB[:CHUNK]))
    assert [(r.method, r.length) for r in proxy.seen if r.is_upload] == [("PUT", CHUNK)]


@pytest.mark.parametrize("status", [400, 404, 405, 413, 416, 501, 201])
def test_a_registry_without_chunks_gets_one_request_from_then_on(
    through: Opener, status: int
) -> None:
    proxy, repository = through(NoChunks(status))
    counts: list[int] = []
    repository.put_blob(blob_content(BLOB), counts.append)
    repository.put_blob(blob_content(BLOB[1:]), counts.append)
    assert sum(counts) == 2 * len(BLOB) - 1
    assert read_all(repository, described(BLOB[1:])) == BLOB[1:]
    assert [r.method for r in proxy.seen if r.is_upload] == ["PATCH", "PUT", "PUT"]


def test_a_broken_chunk_is_sent_again_where_the_registry_keeps_whole_chunks(
    through: Opener,
) -> None:
    proxy, repository = through(BrokenUpload(after=50_000, times=3), BufferedUploads())
    counts: list[int] = []
    repository.put_blob(blob_content(BLOB), counts.append)
    assert read_all(repository, described(BLOB)) == BLOB
    assert sum(counts) == len(BLOB)
    assert proxy.uploaded <= len(BLOB) + 3 * CHUNK


def test_a_broken_chunk_that_loses_the_session_starts_the_blob_again(through: Opener) -> None:
    """docker-registry keeps a part of a chunk and then knows no way to go on (its state says another offset)."""
    _, repository = through(BrokenUpload(after=50_000))
    counts: list[int] = []
    repository.put_blob(blob_content(BLOB), counts.append)
    assert read_all(repository, described(BLOB)) == BLOB
    assert sum(counts) == len(BLOB)


def test_a_line_that_never_holds_for_a_blob_gives_up(through: Opener) -> None:
    """Each try gets further than the first chunk, loses its session, and begins again: that must end."""
    proxy, repository = through(BreakingSecondChunk())
    with pytest.raises(Unreachable):
        repository.put_blob(blob_content(BLOB))
    assert proxy.uploaded < 6 * 2 * CHUNK


class BreakingSecondChunk(BrokenUpload):
    """Every session breaks in its second chunk, whose beginning the registry keeps."""

    def __init__(self) -> None:
        super().__init__(after=50_000, times=1_000)

    def request_body(self, request: Seen, body: Iterator[bytes]) -> Iterator[bytes]:
        first = request.headers.get("Content-Range", "").startswith("0-")
        return body if first else super().request_body(request, body)


def test_a_forgotten_session_starts_again(through: Opener) -> None:
    _, repository = through(LostUpload(times=1))
    counts: list[int] = []
    repository.put_blob(blob_content(BLOB), counts.append)
    assert read_all(repository, described(BLOB)) == BLOB
    assert sum(counts) == len(BLOB)


@pytest.mark.parametrize("profile", [SMALL_CHUNKS, IN_ONE])
def test_a_token_that_expires_in_the_middle_of_a_push_is_renewed(
    through: Opener, token_registry: TokenAuthRegistry, profile: RegistryProfile
) -> None:
    access = alice_everywhere()
    _, repository = through(
        ExpiringToken(uses=2), server=token_registry, access=access, profile=profile
    )
    counts: list[int] = []
    repository.put_blob(blob_content(BLOB), counts.append)
    assert sum(counts) == len(BLOB)
    put_image(repository, "v1")
    assert read_all(repository, described(BLOB)) == BLOB


@pytest.mark.parametrize("limit", [RateLimitSeconds, RateLimitDate])
def test_a_limited_rate_in_the_middle_of_a_push_is_waited_out(
    through: Opener, limit: type[RateLimitSeconds]
) -> None:
    _, repository = through(limit(1, times=2))
    put_image(repository, "v1")
    assert read_all(repository, described(BLOB)) == BLOB


# Mounting


@pytest.fixture
def mounting(
    token_registry: TokenAuthRegistry, unique_name: Callable[[str], str]
) -> Callable[..., tuple[FaultyRegistry, RegistryRepository]]:
    access = Access(
        ExplicitCredential(token_registry.host, BasicCredential("alice", USERS["alice"]))
    )

    def open_mounting(*sources: str) -> RegistryRepository:
        reference = RegistryReference(token_registry.host, unique_name("team/target"))
        return open_repository(reference, access, mount_from=sources)

    return open_mounting  # type: ignore[return-value]


def test_a_blob_of_another_repository_is_mounted(
    mounting: Callable[..., RegistryRepository], token_registry: TokenAuthRegistry
) -> None:
    source = mounting()
    data = BLOB[3:]
    source.put_blob(blob_content(data))
    target = mounting("team/absent", source.repository)
    counts: list[int] = []

    def read(_: int) -> Iterator[bytes]:
        raise AssertionError("nothing is to be sent")

    target.put_blob(BlobContent(described(data), read), counts.append)
    assert sum(counts) == len(data)
    assert read_all(target, described(data)) == data
    scopes = [
        r.scopes for r in token_registry.tokens.requests if target.repository in str(r.scopes)
    ]
    assert (
        f"repository:{source.repository}:pull",
        f"repository:{target.repository}:pull,push",
    ) in scopes


def test_a_blob_that_no_source_has_is_sent(mounting: Callable[..., RegistryRepository]) -> None:
    target = mounting("team/absent")
    data = BLOB[5:]
    target.put_blob(blob_content(data))
    assert read_all(target, described(data)) == data

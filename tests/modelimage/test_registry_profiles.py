"""Each registry's profile against what that registry does, emulated before a real one; and a stranger's against all.

A listed registry is never probed: not a byte is sent twice. One that isn't listed costs a chunk to find out, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import RemoteRefused
from modelimage.registry.blob_upload import chunk_bytes, most_chunk
from modelimage.registry.client import RegistryRepository
from modelimage.registry.profiles import PROFILES, UNLISTED, RegistryProfile, profile_for
from modelimage.repository import StreamedContent
from tests.modelimage.conformance import BLOB, blob_content, described, read_all
from tests.modelimage.test_registry_faults import CHUNK, Opener, through
from tests.servers.faulty_registry import Fault, NoChunks
from tests.servers.registry_kinds import (
    FirstChunkIsTheLast,
    LeastChunk,
    LimitedChunks,
    LimitedLayers,
)

__all__ = ["through"]

# What is documented of each, in the size of the tests: GitHub's 4 MiB are half a chunk here.
EMULATED: dict[str, Callable[[], tuple[Fault, ...]]] = {
    "ghcr.io": lambda: (LimitedChunks(CHUNK // 2),),
    "123456789012.dkr.ecr.eu-central-1.amazonaws.com": lambda: (FirstChunkIsTheLast(),),
    "public.ecr.aws": lambda: (FirstChunkIsTheLast(),),
    "europe-docker.pkg.dev": lambda: (NoChunks(404, unranged=True),),
    "gcr.io": lambda: (NoChunks(405, unranged=True),),
    "team.azurecr.io": lambda: (NoChunks(416, unranged=True),),
    "quay.io": lambda: (NoChunks(400, unranged=True),),
    "registry.gitlab.com": lambda: (),
    "docker.io": lambda: (LeastChunk(2 * CHUNK, len(BLOB)),),
    "harbor.example.com": lambda: (),
}


def scaled(profile: RegistryProfile) -> RegistryProfile:
    return replace(profile, chunk_bytes=CHUNK)


def streamed() -> StreamedContent:
    def read(offset: int) -> Iterator[bytes]:
        yield BLOB[offset:]

    return StreamedContent("blob", len(BLOB), read, lambda: described(BLOB).digest)


Put = Callable[[RegistryRepository], None]
WAYS: dict[str, Put] = {
    "known": lambda repository: repository.put_blob(blob_content(BLOB)),
    "streamed": lambda repository: repository.put_streamed(streamed()),
}


def test_every_profile_is_emulated() -> None:
    assert {profile_for(host).name for host in EMULATED} == {each.name for each in PROFILES}


@pytest.mark.servers
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", EMULATED)
def test_a_listed_registry_gets_every_byte_once(through: Opener, host: str, way: str) -> None:
    proxy, repository = through(*EMULATED[host](), profile=scaled(profile_for(host)))
    WAYS[way](repository)
    assert read_all(repository, described(BLOB)) == BLOB
    assert proxy.uploaded == len(BLOB)


@pytest.mark.servers
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("host", EMULATED)
def test_a_stranger_that_does_the_same_costs_a_chunk(through: Opener, host: str, way: str) -> None:
    proxy, repository = through(*EMULATED[host](), profile=scaled(UNLISTED))
    WAYS[way](repository)
    assert read_all(repository, described(BLOB)) == BLOB
    assert proxy.uploaded <= len(BLOB) + 2 * CHUNK


@pytest.mark.servers
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_above_an_unknown_limit_is_refused_with_the_way_out(
    through: Opener, way: str
) -> None:
    """A reverse proxy's limit on bodies, for example: chunks are above it as well as the whole."""
    proxy, repository = through(LimitedLayers(CHUNK // 2))
    with pytest.raises(RemoteRefused) as caught:
        WAYS[way](repository)
    assert "--max-layer-size" in str(caught.value.hint)
    assert proxy.uploaded <= len(BLOB) + 2 * CHUNK


@given(
    st.integers(1, 1 << 40), st.floats(1e-3, 1e4, allow_nan=False), st.integers(1 << 20, 1 << 30)
)
def test_a_chunk_takes_two_seconds_and_is_neither_tiny_nor_beyond_what_is_allowed(
    sent: int, seconds: float, most: int
) -> None:
    size = chunk_bytes(sent, seconds, most)
    assert min(most, 4 << 20) <= size <= most
    if min(most, 4 << 20) < size < most:
        assert size * seconds / sent == pytest.approx(2, rel=0.01)


@given(st.integers(0, 1 << 45), st.integers(4 << 20, 1 << 30), st.booleans())
def test_a_kill_costs_a_small_part_of_a_blob(size: int, allowed: int, killed: bool) -> None:
    most = most_chunk(size, allowed, killed=killed)
    assert most <= allowed
    assert most <= max(4 << 20, size / (128 if killed else 64))

"""The shipped agent with every tier: as each is turned off, its metrics say that the next one served.

And S3 on a network that loses connections."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cache_agent.api.wire import WarmBody
from cache_agent.config import S3Section, SharedSection, TierSection
from cache_agent.fetch.values import PullRequest
from cache_agent.net.sockets import connect
from cache_agent.node.tiers import Tiers
from cache_agent.sources.hub import HubSource
from cache_agent.sources.s3 import S3Bucket
from cache_agent.sources.source import ChunkRange
from cache_agent.store.paths import StorePaths
from modelimage.digest import Digest
from modelimage.errors import NoSpace, Unreachable
from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE
from modelimage.reference import RegistryReference, parse_image
from modelimage.repository import BlobStream
from tests.cache_agent.daemon.test_agent import RunningAgent, agent, finish, push
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise
from tests.cache_agent.nodes import NodeFactory, findings
from tests.cache_agent.peers.cluster import KEY, addresses
from tests.servers.hub import Hub
from tests.servers.losing import LosingConnections, StallingConnections
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry
from tests.servers.s3 import S3

pytestmark = pytest.mark.servers

CONTENTS = {"model.safetensors": noise(CHUNK_SIZE + 5000, 3), "config.json": b"{}"}


@pytest.fixture
def keys(s3: S3, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Credentials where boto3 looks for them, in this process' environment and for others'."""
    variables = {
        "AWS_ACCESS_KEY_ID": s3.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": s3.SECRET_KEY,
        "AWS_DEFAULT_REGION": s3.REGION,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def bucket(s3: S3, unique_name: Callable[[str], str], keys: dict[str, str]) -> str:
    """A bucket that has the files."""
    name = unique_name("tiers")
    boto3.client("s3", **s3.client_options()).create_bucket(Bucket=name)
    place = S3Bucket(name, "cache", s3.client_options())
    for data in CONTENTS.values():
        place.put(Digest.of(data), len(data), iter([memoryview(data)]))
    return name


@dataclass(frozen=True)
class Everywhere:
    """One model in every tier: its image, and the settings that name them all. `peer` is another node's address."""

    image: str
    settings: Mapping[str, Any]
    peer: str

    def without(
        self, *, order: list[str], shared: int = 0, mirrors: bool = True, memory: bool = True
    ) -> str:
        """The settings with some tiers off: a place of the shared tier, the mirrors, or memory."""
        tiers = {**self.settings["tiers"], "order": order}
        tiers["shared"] = tiers["shared"][shared:]
        if not mirrors:
            tiers["mirrors"] = {}
        if not memory:
            tiers["memory_budget"] = 1
        return yaml.safe_dump({**self.settings, "tiers": tiers})


@pytest.fixture
def everywhere(
    tmp_root: Path,
    registry: DockerRegistry,
    s3: S3,
    bucket: str,
    hub: Hub,
    unique_name: Callable[[str], str],
) -> Everywhere:
    shared, published = tmp_root / "shared", tmp_root / "published"
    published.mkdir()
    for name, data in CONTENTS.items():
        digest = Digest.of(data)
        path = shared / "files" / "sha256" / digest.hex[:2] / digest.hex
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        (published / name).write_bytes(data)
    name = unique_name("org/model")
    commit = hub.add(name, published)
    record, blobs = make_record([{path: data} for path, data in CONTENTS.items()])
    record = replace(record, source=f"hf://{name}", revision=commit)
    image = parse_image(f"{registry.host}/{unique_name('agent/tiers')}:v1")
    assert isinstance(image, RegistryReference)
    push(MemoryImage.of([record], blobs), image)
    port = registry.host.rpartition(":")[2]
    tiers = {
        "shared": [
            {"s3": {"bucket": bucket, "prefix": "cache", "endpoint": s3.url}},
            {"directory": str(shared)},
        ],
        "mirrors": {registry.host: [f"localhost:{port}"]},
        "hub": {"endpoint": hub.url},
    }
    own, peer = addresses(2)
    (tmp_root / "key").write_text(KEY + "\n")
    members = [{"address": address} for address in (own, peer)]
    peers = {"listen": own, "members": members, "key_file": str(tmp_root / "key")}
    return Everywhere(str(image), {"tiers": tiers, "peers": peers}, peer)


@pytest.fixture
def neighbour(tmp_root: Path, everywhere: Everywhere) -> Iterator[Path]:
    """Another node's agent, which has the model: its store."""
    settings = tmp_root / "neighbour.yaml"
    peers = {**everywhere.settings["peers"], "listen": everywhere.peer}
    settings.write_text(yaml.safe_dump({"peers": peers}))
    with agent(tmp_root / "neighbour", "--config", str(settings)) as running:
        finish(running.client, everywhere.image)
        yield running.root
    assert findings(tmp_root / "neighbour") == []


@contextmanager
def agent_of(root: Path, settings: str, keys: Mapping[str, str]) -> Iterator[RunningAgent]:
    """An agent with these settings, that copies nothing to shared places."""
    file = root.parent / f"{root.name}.yaml"
    file.write_text(settings)
    with agent(root, "--config", str(file), "--no-tiers-populate-shared", environment=keys) as it:
        yield it


Counted = dict[tuple[str, ...], float]


def counted(root: Path, name: str) -> Counted:
    """A counter of the agent's metrics, by the values of its labels in their order."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = connect(StorePaths(root).socket, None)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"weightyard_{name}_total"
    }


def test_as_each_tier_is_turned_off_the_next_one_serves(
    tmp_root: Path,
    everywhere: Everywhere,
    neighbour: Path,
    bucket: str,
    registry: DockerRegistry,
    hub: Hub,
    keys: dict[str, str],
) -> None:
    """Memory and disk are the first two: what is in memory isn't read, what is on the disk isn't fetched."""
    without, all_tiers = everywhere.without, ["peer", "shared", "registry", "hub"]
    steps = [
        (without(order=all_tiers), "peer", "peers"),
        (without(order=all_tiers[1:]), "shared", f"s3://{bucket}"),
        (without(order=all_tiers[1:], shared=1), "shared", str(tmp_root)),
        (without(order=all_tiers[2:]), "registry", "localhost:"),
        (without(order=["registry"], mirrors=False), "registry", registry.host),
        (without(order=["hub"]), "hub", hub.url.removeprefix("http://")),
    ]
    total = sum(map(len, CONTENTS.values()))
    for number, (text, tier, place) in enumerate(steps):
        with agent_of(tmp_root / f"store-{number}", text, keys) as running:
            done = finish(running.client, everywhere.image)
            assert files_of(Path(done.path)) == CONTENTS
            came = counted(running.root, "fetched_bytes")
            assert {(t, source.startswith(place)) for source, t in came} == {(tier, True)}, came
            assert sum(came.values()) == total
            again = finish(running.client, everywhere.image)
            assert (again.fetched, again.reused) == (0, total), "the disk served"
            assert counted(running.root, "reused_bytes") == {(): total}
            assert counted(running.root, "fetched_bytes") == came
            warmth = running.client.warm(WarmBody(model=everywhere.image))
            assert warmth.resident == warmth.size == total
            assert counted(running.root, "warm_hit_bytes") == {(): total}, "memory served"
        assert findings(running.root) == []
    assert counted(neighbour, "peer_sent_bytes") == {(): total}


def test_without_memory_the_disk_serves(
    tmp_root: Path, everywhere: Everywhere, keys: dict[str, str]
) -> None:
    settings = everywhere.without(order=["registry"], memory=False)
    with agent_of(tmp_root / "store", settings, keys) as running:
        total = finish(running.client, everywhere.image).fetched
        with pytest.raises(NoSpace, match="memory"):
            running.client.warm(WarmBody(model=everywhere.image, lock=True))
        assert files_of(Path(finish(running.client, everywhere.image).path)) == CONTENTS
        assert counted(running.root, "reused_bytes") == {(): total}
    assert findings(running.root) == []


@pytest.mark.parametrize("times", [1, 1000])
def test_s3_that_loses_connections_midway_costs_time_but_no_byte(
    open_node: NodeFactory, s3: S3, bucket: str, times: int
) -> None:
    """What a lost connection broke off another tier gives; lost once, S3 is asked again for the rest."""
    record, blobs = make_record([{path: data} for path, data in CONTENTS.items()])
    image = MemoryImage.of([record], blobs)
    with LosingConnections(s3.url, after=200_000, times=times) as network:
        place = S3Section(bucket=bucket, prefix="cache", endpoint=network.url)
        config = TierSection(shared=(SharedSection(s3=place),))
        node = open_node({"reg.test/m": image}, sources=Tiers(config, open_node._reader))
        handle = node.pull(PullRequest(parse_image("reg.test/m:v1")))
        result = handle.result()
        node.close()
    assert result is not None
    assert files_of(result.path) == CONTENTS
    assert network.lost >= 1
    came = {tier: size for tier, _, size in handle.snapshot().by_source}
    assert came["shared"] >= 200_000, "what came before the connection was lost"
    assert sum(came.values()) >= sum(map(len, CONTENTS.values()))


def test_closing_a_stream_ends_a_read_that_a_network_holds_up(s3: S3, bucket: str) -> None:
    """Else a transfer that stands still would keep its worker until the socket's own patience ends."""
    digest = Digest.of(CONTENTS["model.safetensors"])

    def read(stream: BlobStream) -> None:
        with suppress(Exception):  # whatever ends it
            while stream.readinto(memoryview(bytearray(1 << 20))):
                pass

    with StallingConnections(s3.url, after=200_000, times=1) as network:
        options = {**s3.client_options(), "endpoint_url": network.url}
        place = S3Bucket(bucket, "cache", options)
        with suppress(Unreachable), place.open(digest, ByteRange(0, CHUNK_SIZE)) as stream:
            reader = threading.Thread(target=read, args=(stream,))
            reader.start()
            wait_until(lambda: network.lost, what="a connection that stands still")
            stream.close()
            # Sooner than the socket's own patience, 30 seconds.
            wait_until(lambda: not reader.is_alive(), what="end of the read", idle_seconds=10)
            stream.close()  # again does nothing


def test_a_hub_stream_that_has_ended_can_be_closed(hub: Hub, tmp_root: Path) -> None:
    (tmp_root / "m").mkdir()
    (tmp_root / "m" / "config.json").write_bytes(CONTENTS["config.json"])
    commit = hub.add("org/ended", tmp_root / "m")
    record, _ = make_record([{"config.json": CONTENTS["config.json"]}])
    source = HubSource.of(replace(record, source="hf://org/ended", revision=commit), hub.url, None)
    assert source is not None
    with source.open([ChunkRange(record.files[0], 0, ByteRange(0, 2))]) as stream:
        assert stream.readinto(memoryview(bytearray(10))) == 2
        assert stream.readinto(memoryview(bytearray(10))) == 0
        stream.close()

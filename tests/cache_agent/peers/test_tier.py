"""Who the peers are, what is shared with them, and what an answer of 'not yet' does to a pull."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cache_agent.config import AgentConfig, PeersSection
from cache_agent.config.settings_file import parse_config
from cache_agent.daemon.peers_setup import make_peers
from cache_agent.fetch.job import AssignedRange, Job, SourceRetryPolicy
from cache_agent.fetch.range_planner import RangeRequest, plan_queues
from cache_agent.net.listen_addresses import Address
from cache_agent.observability.events import Events
from cache_agent.peers.chunk_watch import PeerChunkList, record_answer
from cache_agent.peers.membership import REFRESH_SECONDS, Membership
from cache_agent.peers.peer_source import Announced, PeerSource
from cache_agent.peers.rate import PacedStream, PeerTooSlow, RateBaseline
from cache_agent.peers.values import Have, Member
from cache_agent.prewarm.cluster.desired_models import ClusterSource, NodeLabels
from cache_agent.sources.source import FetchUpstream, RetryLater, Source, Tier
from modelimage.errors import AccessDenied, InvalidInput, RemoteRefused, Unreachable
from modelimage.record import CHUNK_SIZE
from modelimage.repository import ImageReader
from modelimage.resolve import resolve_model
from tests.cache_agent.images import MemoryImage, simple_image
from tests.cache_agent.peers.certificates import Authority
from tests.cache_agent.peers.simulation import Bytes, big_file


def settings(tmp_path: Path, **changed: Any) -> PeersSection:
    key = tmp_path / "key"
    key.write_text("k" * 40)
    section = {"listen": "10.0.0.1:7946", "dns": "peers.test:7946", "key_file": str(key), **changed}
    config = parse_config(yaml.safe_dump({"peers": section}), {}, {})
    assert config.peers is not None
    return config.peers


class Origin:
    """A registry that gives its image to nobody in particular, or to nobody."""

    def __init__(self, image: MemoryImage, *, public: bool) -> None:
        self.image, self.public, self.asked = image, public, 0

    def __call__(self, reference: object) -> Any:
        self.asked += 1
        if not self.public:
            raise AccessDenied("who are you?")
        return self.image


class Plain:
    """A source upstream."""

    tier, name, authorizes = Tier.REGISTRY, "reg.test", True

    @contextmanager
    def open(self, pieces: Sequence[object]) -> Iterator[Bytes]:
        yield Bytes(0)


@pytest.mark.parametrize(
    ("public", "tls", "shared"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_a_private_model_is_shared_over_mutual_tls_only(
    tmp_path: Path, public: bool, tls: bool, shared: bool
) -> None:
    image, _, _ = simple_image(weights=[1000])
    changed: dict[str, Any] = {}
    if tls:
        files = Authority(tmp_path / "ca").issue("node")
        names = {"ca": files.ca, "certificate": files.certificate, "key": files.key}
        changed["tls"] = {name: str(path) for name, path in names.items()}
    origin = Origin(image, public=public)
    peers = make_peers(settings(tmp_path, **changed), streams=4, events=Events(), anonymous=origin)
    try:
        resolved = resolve_model(image, "v1")
        upstream: list[Source] = [Plain()]
        sources = peers.wrap(upstream, resolved, "reg.test/m")
        if shared:
            assert [type(source) for source in sources] == [PeerSource, Announced]
            assert [source.authorizes for source in sources] == [False, True]
        else:
            assert sources == upstream
        assert origin.asked == 1
        layout = peers.wrap(upstream, resolved, "oci:/models/m")
        assert (len(layout) == 2) == tls, "a directory is nobody's to share but its owner's"
    finally:
        peers.close()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dns": None}, "members or dns"),
        ({"listen": "0.0.0.0:7946"}, "advertise"),
        ({"zones": "both"}, "zones"),
        ({"members": [{"address": "nowhere"}]}, "members"),
    ],
)
def test_settings_that_cant_work_are_refused(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        settings(tmp_path, **changed)


def test_a_pods_address_is_given_by_a_variable(tmp_path: Path) -> None:
    text = yaml.safe_dump({"peers": {"listen": "[::]:7946", "dns": "p:1", "key_file": "k"}})
    environ = {"WEIGHTYARD_PEERS__ADVERTISE": "fd00::7:7946"}
    config: AgentConfig = parse_config(text, environ, {})
    assert config.peers is not None
    assert config.peers.name() == "[fd00::7]:7946"


@pytest.mark.parametrize(("given", "zone"), [("", "b"), ("a", "a")])
def test_a_node_takes_its_zone_from_its_labels_unless_it_is_set(
    tmp_path: Path, given: str, zone: str
) -> None:
    peers = make_peers(
        settings(tmp_path, zone=given), streams=4, events=Events(), anonymous=_nobody
    )
    wanted = ClusterSource(lambda *_: None, lambda _: None, NodeLabels(peers.take_zone))
    document = {"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "b"}}}
    wanted.node.replace([document])
    assert peers.own.zone == zone
    wanted.node.put({"metadata": {"name": "n1"}})
    assert peers.own.zone == given
    peers.close()


def _nobody(reference: object) -> ImageReader:
    raise AccessDenied("who are you?")


def test_members_come_from_dns_and_the_list_and_outlive_dns() -> None:
    now, hosts = [0.0], {"peers.test": ["10.0.0.2", "fd00::3", "10.0.0.1"]}

    def resolve(host: str) -> list[str]:
        if host not in hosts:
            raise OSError("no such name")
        return hosts[host]

    name = Address("peers.test", 7946)
    listed = [Member("10.0.0.2:7946", "a"), Member("10.0.0.9:7946", "b")]
    members = Membership("10.0.0.1:7946", listed, name, lambda: now[0], resolve)
    assert members.may_have_others
    expected = [
        Member("10.0.0.2:7946", "a"),
        Member("10.0.0.9:7946", "b"),
        Member("[fd00::3]:7946"),
    ]
    assert members.others() == expected
    hosts["peers.test"] = ["10.0.0.4"]
    assert members.others() == expected
    now[0] += REFRESH_SECONDS
    after = [listed[0], Member("10.0.0.4:7946"), listed[1]]
    assert members.others() == after
    hosts.clear()
    now[0] += REFRESH_SECONDS
    assert members.others() == after


def test_a_peer_without_news_is_asked_less_and_less_and_a_complete_one_never() -> None:
    view, now, gaps = PeerChunkList(), 0.0, []
    for _ in range(8):
        record_answer(view, Have(3, 1, 2, 5), now, 0.1)
        gaps.append(round(view.again - now, 3))
        now = view.again
    assert gaps[0] == 0.1
    assert gaps == sorted(gaps)
    assert gaps[-1] == 1.0
    record_answer(view, Have(3, 3, 0, 9), now, 0.1)
    assert view.again == now + 0.1
    assert view.stall_timeout(10.0) == 10.0
    record_answer(view, Have(3, 7, 0, 12), now + 0.2, 0.1)
    assert view.again == float("inf")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"chunks": 1}',
        b'{"chunks": 1, "have": "3", "coming": "0", "received": 0, "zone": ""}',
        b'{"chunks": -1, "have": "0", "coming": "0", "received": 0, "zone": ""}',
        b'{"chunks": 1, "have": "g", "coming": "0", "received": 0, "zone": ""}',
        b"[" * 100_000,
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteRefused):
        Have.parse(data)


def test_an_answer_survives_the_wire() -> None:
    """Law of `Have`."""
    have = Have(5, 0b10010, 0b00101, 77, "a")
    assert Have.parse(have.to_bytes()) == have


def test_a_transfer_that_crawls_beside_others_is_ended() -> None:
    """SlowPeer."""
    now, pace = [0.0], RateBaseline()
    pace.note(100 << 20, 1.0)
    stream = PacedStream(Bytes(CHUNK_SIZE), pace, lambda: now[0])
    buffer = memoryview(bytearray(1 << 20))
    for _ in range(3):
        now[0] += 0.9
        assert stream.readinto(buffer)
    now[0] += 0.9
    with pytest.raises(PeerTooSlow):
        stream.readinto(buffer)


def job_of(chunks: int, now: list[float]) -> Job:
    file = big_file(chunks)
    tracks = plan_queues([file], {file.digest: range(chunks)})
    sources: Any = [SimpleNamespace(tier=Tier.PEER), Plain()]
    return Job(
        tracks, sources, {}, priority=0, monotonic=lambda: now[0], policy=SourceRetryPolicy()
    )


def take(job: Job) -> AssignedRange:
    work = job.next_work(0)
    assert isinstance(work, AssignedRange)
    return work


def index_of(work: AssignedRange) -> int:
    return work.state.range_request.pieces[0].index


def test_what_isnt_there_yet_lets_others_go_first_and_comes_back_in_its_place() -> None:
    now = [0.0]
    job = job_of(3, now)
    first = take(job)
    job.failed(first, RetryLater("coming", after=1.0), first.state.range_request)
    second = take(job)
    assert (index_of(first), index_of(second), second.source) == (0, 1, 0)
    job.failed(second, RetryLater("coming", after=5.0), second.state.range_request)
    third = take(job)
    job.succeeded(third)
    assert job.next_work(0) == 1.0, "the time to ask again"
    now[0] = 6.0
    again = take(job)
    assert (index_of(again), again.source) == (0, 0), "no other source was asked meanwhile"
    job.succeeded(again)
    job.succeeded(take(job))
    assert job.finished.is_set()
    assert job.error is None


def test_what_waits_in_line_comes_when_a_transfer_ends() -> None:
    job = job_of(3, [0.0])
    under_way, first, second = take(job), take(job), take(job)
    for work in (second, first):
        job.failed(work, RetryLater("no slot", after=9.0, in_line=True), work.state.range_request)
    assert job.next_work(0) == 9.0
    job.succeeded(under_way)
    assert index_of(take(job)) == 1
    assert job.next_work(0) == 9.0


def test_a_cancelled_job_ends_with_what_was_put_off() -> None:
    job = job_of(1, [0.0])
    work = take(job)
    job.failed(work, RetryLater("coming", after=9.0), work.state.range_request)
    job.cancel()
    assert job.finished.is_set()


def test_when_upstream_fails_the_peers_are_asked_again() -> None:
    now = [0.0]
    job = job_of(1, now)
    work = take(job)
    span: RangeRequest = work.state.range_request
    job.failed(work, FetchUpstream("fetch it"), span)
    upstream = take(job)
    assert upstream.source == 1
    job.failed(upstream, Unreachable("away"), span)
    now[0] = 60.0
    assert take(job).source == 0

"""The agent as a real process in front of a real registry: its API, its end by signals, its start after SIGKILL."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_agent.api.control_client import AgentClient
from cache_agent.api.errors import from_view, status_of, to_view
from cache_agent.api.wire import (
    ErrorView,
    GcBody,
    LeaseBody,
    PullBody,
    PullDone,
    WarmBody,
    to_document,
)
from cache_agent.api.wire_parsers import parse_json
from cache_agent.net.sockets import connect
from cache_agent.store.paths import StorePaths
from modelimage import errors
from modelimage.access import Access, open_image_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import Busy, InUse, InvalidInput, NotFound, Unreachable, WeightyardError
from modelimage.ranges import parse_range
from modelimage.record import CHUNK_SIZE
from modelimage.reference import RegistryReference, parse_image
from modelimage.repository import BlobContent
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import UNDISTURBED, findings
from tests.servers.faulty_registry import FaultyRegistry, HeldBack
from tests.servers.process import child_environment, wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers


@dataclass
class RunningAgent:
    """An agent started by a test."""

    process: subprocess.Popen[bytes]
    client: AgentClient
    log: Path
    root: Path


@contextmanager
def agent(
    root: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[RunningAgent]:
    """Start `weightyard agent` and stop it at the end, if it still runs."""
    root.mkdir(parents=True, exist_ok=True)
    log = root.parent / f"agent-{len(list(root.parent.glob('agent-*')))}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "weightyard.cli",
                "--json",
                "agent",
                "--root",
                str(root),
                *options,
            ],
            stderr=stream,
            env={**child_environment(root.parent), **UNDISTURBED, **(environment or {})},
        )
    try:
        client = wait_until(lambda: _answering(root, process, log), what="agent that answers")
        yield RunningAgent(process, client, log, root)
    finally:
        if process.poll() is None:
            process.terminate()
            assert process.wait() == 0, log.read_text()


def _answering(root: Path, process: subprocess.Popen[bytes], log: Path) -> AgentClient | None:
    assert process.poll() is None, log.read_text()
    return AgentClient.from_socket(StorePaths(root).socket)


def push(image: MemoryImage, reference: RegistryReference, access: Access | None = None) -> None:
    """Put an in-memory image into a real registry."""
    writer = open_image_repository(reference, access or Access())
    for descriptor, data in image.manifests.values():
        document = json.loads(data)
        for blob in [document.get("config"), *document.get("layers", [])]:
            if blob:
                content = image.blobs[Digest.parse(blob["digest"])]

                def read(at: int, content: bytes = content) -> Iterator[bytes]:
                    return iter([content[at:]])

                writer.put_blob(BlobContent(Descriptor.from_json(blob), read))
        if "manifests" not in document:
            writer.put_manifest(descriptor, data)
    for tag, digest in image.names.items():
        descriptor, data = image.manifests[digest]
        writer.put_manifest(descriptor, data, tag)


Pushed = tuple[str, dict[str, bytes], Mapping[Digest, int]]


@pytest.fixture
def pushed(registry: DockerRegistry, unique_name: Callable[[str], str]) -> Pushed:
    """An image in the registry: its reference, its files, its weight layers' sizes."""
    image, record, contents = simple_image(weights=[3 * CHUNK_SIZE, CHUNK_SIZE, 70_000])
    reference = parse_image(f"{registry.host}/{unique_name('agent/model')}:v1")
    assert isinstance(reference, RegistryReference)
    push(image, reference)
    return str(reference), contents, {layer.digest: layer.size for layer in record.layers}


@pytest.fixture
def held(registry: DockerRegistry) -> Iterator[tuple[FaultyRegistry, HeldBack]]:
    """The registry behind a proxy that keeps back all but the first chunk of each layer, until it is let go."""
    later = HeldBack(CHUNK_SIZE)
    with FaultyRegistry(registry.host, later) as upstream:
        yield upstream, later
        later.let_go.set()


def asked_of(upstream: FaultyRegistry) -> int:
    """How many bytes of layers it was asked for."""
    headers = [each.headers.get("Range", "") for each in upstream.seen if each.is_blob]
    return sum(len(parse_range(header, 1 << 60) or "") for header in headers)


def finish(client: AgentClient, image: str) -> PullDone:
    *_, last = client.pull(PullBody(image=image))
    assert isinstance(last, PullDone)
    return last


def test_evictions_by_hand_are_counted_and_logged(tmp_root: Path, pushed: Pushed) -> None:
    image, _, _ = pushed
    with agent(tmp_root / "store") as running:
        done = finish(running.client, image)
        freed = running.client.gc(GcBody(need=1 << 60))
        assert [each.key for each in freed.victims] == [done.key]
        lines = [json.loads(line) for line in running.log.read_text().splitlines()]
        (told,) = [each for each in lines if each["event"] == "model evicted"]
        assert told["freed"] == freed.freed
        assert [each.text for each in running.client.events()].count("model evicted") == 1


def test_the_api_from_pull_to_removal(tmp_root: Path, pushed: Pushed) -> None:
    image, contents, _ = pushed
    with agent(tmp_root / "store") as running:
        client = running.client
        done = finish(client, image)
        assert files_of(Path(done.path)) == contents
        assert set(done.tiers) == {"registry"}
        assert [model.key for model in client.models()] == [done.key]
        assert client.find(image).variant == "bf16"
        lease = client.lease(LeaseBody(model=done.key[7:19], holder="manual:me", id="volume-1"))
        with pytest.raises(InUse, match="manual:me"):
            client.remove(done.key)
        assert client.release(lease.id)
        assert not client.release(lease.id)
        assert client.pin(image, pinned=True).pinned
        assert [each.pinned for each in client.status().status.models] == [True]
        client.pin(image, pinned=False)
        assert [each.pinned for each in client.status().status.models] == [False]
        assert client.pin(image, pinned=True).pinned
        with pytest.raises(InUse, match="pinned"):
            client.remove(image)
        assert client.gc(GcBody(need=10**6)).freed == 0
        space = client.space()
        assert space.models == 1
        assert space.evictable == 0
        assert client.check().findings == []
        assert client.remove(image, unpin=True).freed == space.own
        with pytest.raises(NotFound):
            client.find(image)
        with pytest.raises(NotFound):
            finish(client, f"{image}-none")
        with pytest.raises(InvalidInput):
            client.lease(LeaseBody(model="ffff", holder="nobody"))
        events = [json.loads(line)["event"] for line in running.log.read_text().splitlines()]
    assert "pull ended" in events
    assert findings(tmp_root / "store") == []


def test_health_and_metrics_are_served(tmp_root: Path, pushed: Pushed) -> None:
    image, contents, _ = pushed
    with agent(tmp_root / "store", "--port", "0") as running:
        finish(running.client, image)
        ready = next(
            json.loads(line) for line in running.log.read_text().splitlines() if '"ready"' in line
        )
        connection = http.client.HTTPConnection("127.0.0.1", ready["port"])
        for path in ("/livez", "/readyz", "/metrics"):
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
        connection.close()
    size = sum({bytes(data): len(data) for data in contents.values()}.values())
    fetched = next(line for line in text.splitlines() if "fetched_bytes_total{" in line)
    assert 'tier="registry"' in fetched
    assert float(fetched.rpartition(" ")[2]) == size


def test_a_second_agent_and_a_command_are_told_who_has_the_store(tmp_root: Path) -> None:
    root = tmp_root / "store"
    with agent(root) as running:
        second = subprocess.run(
            [sys.executable, "-m", "weightyard.cli", "agent", "--root", str(root)],
            capture_output=True,
            check=False,
            env=child_environment(tmp_root),
        )
        assert second.returncode == 12
        assert f"pid {running.process.pid}" in second.stderr.decode()
    assert issubclass(Busy, WeightyardError)


def test_killed_under_load_it_starts_again_and_fetches_only_what_was_missing(
    tmp_root: Path, pushed: Pushed, held: tuple[FaultyRegistry, HeldBack]
) -> None:
    image, contents, layers = pushed
    upstream, later = held
    image = f"{upstream.host}/{image.partition('/')[2]}"
    root = tmp_root / "store"
    with agent(root) as running:
        threads = [
            threading.Thread(target=_pull_until_killed, args=(running.client, image))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        wait_until(
            lambda: any(p.stat().st_size for p in (root / "partial").glob("*.bitmap")),
            what="verified chunk",
        )
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        for thread in threads:
            thread.join()
    later.let_go.set()
    with agent(root) as again:
        upstream.seen.clear()
        done = finish(again.client, image)
        assert files_of(Path(done.path)) == contents
        assert done.resumed >= CHUNK_SIZE
        assert again.client.check().findings == []
    total = sum(layers.values())
    assert asked_of(upstream) <= total - CHUNK_SIZE + 100_000
    assert findings(root) == []


def _pull_until_killed(client: AgentClient, image: str) -> None:
    try:
        finish(client, image)
    except Unreachable:
        return


def test_hanging_up_cancels_the_pull_and_the_next_one_goes_on(
    tmp_root: Path, pushed: Pushed, held: tuple[FaultyRegistry, HeldBack]
) -> None:
    image, contents, _ = pushed
    upstream, later = held
    image = f"{upstream.host}/{image.partition('/')[2]}"
    with agent(tmp_root / "store") as running:
        events = running.client.pull(PullBody(image=image))
        next(e for e in events if not isinstance(e, PullDone) and e.done)
        events.close()
        wait_until(lambda: "Cancelled" in running.log.read_text(), what="cancelled pull")
        later.let_go.set()
        assert files_of(Path(finish(running.client, image).path)) == contents


def test_a_request_that_makes_no_sense_is_answered_with_words(tmp_root: Path) -> None:
    with agent(tmp_root / "store") as running:
        sock = connect(StorePaths(running.root).socket, None)
        body = b'{"image": 7}'
        sock.sendall(
            b"POST /v1/pull HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        answer = sock.recv(4096)
        sock.close()
    assert b"400" in answer.split(b"\r\n")[0]
    assert b"malformed request: image" in answer


def test_a_socket_path_may_be_long(tmp_root: Path) -> None:
    root = tmp_root / ("x" * 120)
    with agent(root) as running:
        assert running.client.models() == []


def test_settings_are_read_again_at_sighup_and_bad_ones_are_refused(tmp_root: Path) -> None:
    settings = tmp_root / "settings.yaml"
    settings.write_text("budget: 10GB\n")
    second = tmp_root / "second"
    with agent(
        tmp_root / "store", "--config", str(settings), "--extra-root", str(second)
    ) as running:
        assert running.client.space().budget == 2 * 10 * 10**9
        roots = [each.root for each in running.client.space().roots]
        assert roots == [str(tmp_root / "store"), str(second)]
        by_second = AgentClient.from_socket(StorePaths(second).socket)
        assert by_second is not None, "the agent is found by any of its roots"
        assert by_second.models() == []
        settings.write_text("budget: 20GB\n")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: running.client.space().budget == 40 * 10**9, what="new budget")
        settings.write_text("budget: lots\n")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "settings kept" in running.log.read_text(), what="refusal in the log")
        assert running.client.space().budget == 40 * 10**9


@pytest.mark.parametrize(
    "kind",
    [each for each in vars(errors).values()
     if isinstance(each, type) and issubclass(each, WeightyardError) and hasattr(each, "fault")],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_every_error_crosses_the_wire_as_itself(kind: type[WeightyardError]) -> None:
    error = kind("what happened", hint="what to do")
    back = from_view(parse_json(ErrorView, json.dumps(to_document(to_view(error)))))
    assert type(back) is kind
    assert (back.message, back.hint) == ("what happened", "what to do")
    assert 400 <= status_of(error) <= 599


def test_a_warmed_model_is_in_memory(
    tmp_root: Path, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:
    """A small one: not every machine lets a process lock more than 64 KiB."""
    image = f"{registry.host}/{unique_name('agent/warm')}:v1"
    reference = parse_image(image)
    assert isinstance(reference, RegistryReference)
    record, blobs = make_record([{"model.safetensors": noise(20_000, 5)}])
    push(MemoryImage.of([record], blobs), reference)
    with agent(tmp_root / "store") as running:
        finish(running.client, image)
        view = running.client.warm(WarmBody(model=image, lock=True))
        assert view.resident == view.size
        assert view.locked == view.size
        assert view.cgroup
        assert running.client.warm(WarmBody(model=image, unlock=True)).locked == 0

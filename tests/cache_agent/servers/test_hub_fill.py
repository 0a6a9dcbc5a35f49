"""The Hub endpoint fills the cache: once, verified, as it is given out; and gives out what it can't keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path

import pytest

from cache_agent.daemon.servers import ServerOptions
from cache_agent.servers.hub.fill import HubImage
from cache_agent.servers.hub.repo_files import HubFile, RepoFiles
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.digest import Digest
from modelimage.reference import parse_image
from tests.cache_agent.images import noise
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.published import model_files, publish, records_of
from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.hub import Hub
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
WEIGHTS = "model.safetensors"
REGISTRIES = ("127.0.0.1:*", "*.0.0.1:*")


@pytest.fixture
def filled(tmp_root: Path, hub: Hub) -> Iterator[ServersInProcess]:
    options = ServerOptions(hub=ANY, registries=REGISTRIES, hub_upstream=hub.url)
    with ServersInProcess(tmp_root / "store", options) as servers:
        yield servers
    assert findings(tmp_root / "store") == []


def added(hub: Hub, repo: str, path: Path, files: dict[str, bytes]) -> str:
    path.mkdir()
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return hub.add(repo, path)


def sent_by(hub: Hub, since: int) -> int:
    """Bytes of content that the Hub gave."""
    return sum(each.sent for each in hub.cdn.requests[since:] if each.method == "GET")


def url(repo: str, range_of: str = "main") -> str:
    return f"/{repo}/resolve/{range_of}/{WEIGHTS}"


def test_readers_that_come_together_cost_the_hub_one_copy(
    filled: ServersInProcess, hub: Hub, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    repo = f"Org/{unique_name('Filled')}"
    data = noise(9_000_000, 91)
    commit = added(hub, repo, tmp_path / "src", {WEIGHTS: data})
    before = len(hub.cdn.requests)
    host = str(filled.servers.hub)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: fetch(host, url(repo)), range(8)))
    assert {answer.body == data for answer in got} == {True}
    assert {answer.headers["x-repo-commit"] for answer in got} == {commit}
    assert sent_by(hub, before) == len(data)
    # Readers have their bytes before the model is published.
    wait_until(lambda: filled.node.store.models.all() != [], what="model")
    (model,) = filled.node.store.models.all()
    assert (model.path / WEIGHTS).read_bytes() == data
    assert parse_image(model.image)
    assert filled.node.store.models.find(model.image).key == model.key
    part = fetch(host, url(repo, commit), headers={"Range": "bytes=100-"})
    assert (part.status, part.body) == (206, data[100:])
    assert sent_by(hub, before) == len(data)


def test_a_look_at_a_header_fetches_no_file(
    filled: ServersInProcess, hub: Hub, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    repo = f"org/{unique_name('peeked')}"
    data = noise(9_000_000, 92)
    added(hub, repo, tmp_path / "src", {WEIGHTS: data})
    before = len(hub.cdn.requests)
    host = str(filled.servers.hub)
    assert fetch(host, url(repo), method="HEAD").headers["content-length"] == str(len(data))
    peek = fetch(host, url(repo), headers={"Range": "bytes=0-4095"})
    assert peek.body == data[:4096]
    assert sent_by(hub, before) == 4096
    assert filled.node.store.models.all() == []


def test_what_the_hub_filled_serves_an_image_of_the_same_files(
    filled: ServersInProcess, hub: Hub, registry: DockerRegistry, tmp_path: Path,
    unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    repo, files = f"org/{unique_name('shared')}", model_files(93)
    added(hub, repo, tmp_path / "src", files)
    assert fetch(str(filled.servers.hub), url(repo)).body == files[WEIGHTS]
    wait_until(lambda: filled.node.store.models.all() != [], what="model")
    record, blobs = records_of(files)
    image = publish(f"{registry.host}/{unique_name('same')}:v1", [record], blobs, files)
    assert filled.pull(image.image).fetched < 100_000


def test_a_node_without_space_passes_the_file_on(
    tmp_root: Path, hub: Hub, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    repo = f"org/{unique_name('full')}"
    data = noise(9_000_000, 94)
    added(hub, repo, tmp_path / "src", {WEIGHTS: data})
    options = ServerOptions(hub=ANY, registries=REGISTRIES, hub_upstream=hub.url)
    with ServersInProcess(tmp_root / "store", options) as servers:
        servers.node.store.set_limits(SpaceLimits(Amount.parse("1MB"), Amount.parse("0")))
        assert fetch(str(servers.servers.hub), url(repo)).body == data
        assert servers.node.store.models.all() == []
    assert findings(tmp_root / "store") == []


def test_other_bytes_than_the_hub_lists_are_neither_kept_nor_given(
    filled: ServersInProcess, hub: Hub, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    repo = f"org/{unique_name('changed')}"
    data = noise(9_000_000, 95)
    added(hub, repo, tmp_path / "src", {WEIGHTS: data})
    host = str(filled.servers.hub)
    assert fetch(host, url(repo), method="HEAD").status == 200
    (tmp_path / "src" / WEIGHTS).write_bytes(bytes(len(data)))
    with pytest.raises(IncompleteRead) as given:
        fetch(host, url(repo))
    assert given.value.partial == b""
    assert filled.node.store.models.all() == []
    assert filled.node.store.files.get(Digest.of(data)) is None


def test_names_that_registries_would_not_take_are_called_something_else() -> None:
    endpoint = "http://127.0.0.1:5001"
    for repo in ("gpt2", "Org/Model-7B", "a--b/c__d", "x/-weird-.", "O.r/g._m"):
        for path in ("model.safetensors", "a/b c/ü.bin", "-x", "." * 200):
            file = HubFile(path, 1, "0" * 40, Digest.of(b"x"))
            listing = RepoFiles(repo, "ab" * 20, {path: file})
            image = HubImage(endpoint, listing, file, Digest.of(b"x"), None)  # type: ignore[arg-type]
            assert parse_image(str(image.reference)) == image.reference
            moved = replace(image, listing=replace(listing, commit="cd" * 20))
            assert moved.resolve("x") == image.resolve("x")


class _Throttling(Handler):
    def do_GET(self) -> None:
        self.answer(429, b"slow down", {"Retry-After": "7"})

    do_HEAD = do_GET  # noqa: N815


class ThrottlingHub(LoopbackServer):
    """A Hub that asks everyone to slow down."""

    HANDLER = _Throttling


def test_a_hub_that_asks_to_slow_down_is_passed_on(tmp_root: Path) -> None:
    with ThrottlingHub() as upstream:
        options = ServerOptions(hub=ANY, registries=REGISTRIES, hub_upstream=upstream.url)
        with ServersInProcess(tmp_root / "store", options) as servers:
            for path in (url("org/model"), "/api/models/org/model"):
                answer = fetch(str(servers.servers.hub), path)
                assert (answer.status, answer.headers.get("retry-after")) == (429, "7")

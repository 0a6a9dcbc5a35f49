"""Any request whatever: the mirror answers with a code of the specification, and goes on answering."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_agent.daemon.servers import ServerOptions
from modelimage.digest import Digest
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.examples import examples
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
EXPECTED = frozenset({200, 206, 400, 401, 404, 405, 416})
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, PublishedModel]]:
    root = tmp_path_factory.mktemp("fuzz") / "store"
    with (
        DockerRegistry() as registry,
        ServersInProcess(
            root, ServerOptions(mirror=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"))
        ) as servers,
    ):
        model = publish_model(f"{registry.host}/team/model:v1", seed=3)
        servers.pull(model.image)
        yield servers.mirror, model


words = st.sampled_from(
    ["v2", "team", "model", "blobs", "manifests", "v1", "..", "%2f", "sha256:" + "ab" * 32, "{weights}", "{host}"]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#?"), max_size=9)  # fmt: skip
numbers = st.integers(-3, 4_000_000).map(str) | st.just("") | st.text("0123456789x-,= ", max_size=9)
ranges = st.builds("bytes={}-{}".format, numbers, numbers) | st.text(
    st.characters(min_codepoint=32, max_codepoint=126), max_size=20
)


@settings(max_examples=examples(150), suppress_health_check=UNCHECKED)
@given(
    parts=st.lists(words, max_size=7),
    namespace=st.none() | st.just("{host}") | words,
    asked=st.none() | ranges,
    method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS"]),
)
def test_any_request_has_an_expected_answer(
    served: tuple[str, PublishedModel],
    parts: list[str],
    namespace: str | None,
    asked: str | None,
    method: str,
) -> None:
    mirror, model = served
    host = model.image.partition("/")[0]

    def filled(text: str) -> str:
        return text.replace("{weights}", str(model.weight_layer)).replace("{host}", host)

    path = "/v2/" + "/".join(map(filled, parts))
    query = "" if namespace is None else f"?ns={filled(namespace)}"
    headers = {} if asked is None else {"Range": asked.strip()}
    answer = fetch(mirror, path + query, method=method, headers=headers)
    assert answer.status in EXPECTED


@settings(max_examples=examples(200), suppress_health_check=UNCHECKED)
@given(asked=ranges)
def test_any_range_gives_those_bytes_or_none(
    served: tuple[str, PublishedModel], asked: str
) -> None:
    mirror, model = served
    registry = model.image.partition("/")[0]
    digest = _small_layer(model)
    data = model.blobs[digest]
    path = f"/v2/team/model/blobs/{digest}?ns={registry}"
    answer = fetch(mirror, path, headers={"Range": asked.strip()})
    match answer.status:
        case 200:
            assert answer.body == data
        case 206:
            span, _, total = answer.headers["content-range"].removeprefix("bytes ").partition("/")
            first, last = map(int, span.split("-"))
            assert (answer.body, total) == (data[first : last + 1], str(len(data)))
        case status:
            assert status == 416


@settings(max_examples=examples(60), suppress_health_check=UNCHECKED)
@given(noise=st.binary(max_size=300))
def test_noise_on_the_socket_leaves_the_mirror_well(
    served: tuple[str, PublishedModel], noise: bytes
) -> None:
    mirror, _ = served
    host, _, port = mirror.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(noise)
    assert fetch(mirror, "/v2/").status == 200


def test_clients_that_never_finish_their_requests_hold_up_nobody(
    served: tuple[str, PublishedModel],
) -> None:
    mirror, model = served
    host, _, port = mirror.rpartition(":")
    registry = model.image.partition("/")[0]
    slow = f"GET /v2/team/model/blobs/{model.weight_layer}?ns={registry} HTTP/1.1\r\nHost: x\r\n"
    with ExitStack() as stack:
        for number in range(200):
            connection = socket.create_connection((host, int(port)))
            stack.enter_context(connection)
            # Half of them ask and never read the answer, the others never finish asking.
            connection.sendall(f"{slow}{chr(13) + chr(10) if number % 2 else ''}".encode())
        path = f"/v2/team/model/blobs/{model.weight_layer}?ns={registry}"
        assert fetch(mirror, path).body == model.blobs[model.weight_layer]


def _small_layer(model: PublishedModel) -> Digest:
    return min(model.record.layers, key=lambda layer: layer.size).digest

"""The mirror before a registry whose headers and documents mean harm: each answer is one of the specification's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_agent.daemon.servers import ServerOptions
from modelimage.digest import Digest
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import fetch
from tests.cache_agent.servers.test_mirror_conformance import CODES
from tests.servers.faulty_registry import FaultyRegistry, Seen
from tests.servers.lying_registry import Status, _On

MOST = 1 << 30
PATHS = (
    "manifests/v1",
    f"manifests/{Digest.of(b'1')}",
    f"blobs/{Digest.of(b'2')}",
    "tags/list",
    f"referrers/{Digest.of(b'3')}",
)
CHALLENGES = (
    'Bearer realm="http://127.0.0.1:1/t",\r\n service="folded"',
    'Bearer realm="http://127.0.0.1:1/t",service="\x01\x7f"',
    "Basic realm=\xff\xfe",
    "Basic " + "x" * 60_000,
    "",
)
LINKS = (
    '<http://169.254.169.254/?n=1>; rel="next"',
    '</v2/x/tags/list?last=%0d%0aX:y>;\r\n rel="next"',
    "<" + "x" * 50_000 + '>; rel="next"',
    '<//[::1>; rel="next"',
    '</v2/x?last=\udcff>; rel="next"'.encode(errors="surrogateescape").decode("latin-1"),
)
MEDIA_TYPES = (
    "a/b\r\nSet-Cookie: x",
    "\ud800/x",
    "x" * 200_000,
    "a/\u0000",
    "",
    {"a": 1},
    10**400,
)


class Documents(_On):
    """Every answer is this document, with these headers."""

    def __init__(self, document: object, **headers: str) -> None:
        super().__init__(times=MOST)
        self._data = json.dumps(document).encode()
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answers(self, request: Seen) -> tuple[int, dict[str, str], bytes] | None:
        return (200, self._headers, self._data) if self.hits(request) else None


FAULTS = {
    **{f"challenge {n}": Status(401, times=MOST, Www_Authenticate=c) for n, c in enumerate(CHALLENGES)},
    **{f"link {n}": Documents({"tags": [], "manifests": []}, Link=link) for n, link in enumerate(LINKS)},
    **{f"filters {n}": Documents({"manifests": []}, OCI_Filters_Applied=text) for n, text in enumerate(LINKS)},
    **{f"media type {n}": Documents({"mediaType": value, "layers": []}) for n, value in enumerate(MEDIA_TYPES)},
    **{f"wait {n}": Status(429, times=MOST, Retry_After=text) for n, text in enumerate(["1e9", "nan", "9" * 99, "-1"])},
}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry("127.0.0.1:1") as server:
        yield server


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, registry: FaultyRegistry) -> Iterator[str]:
    root: Path = tmp_path_factory.mktemp("mirror") / "store"
    options = ServerOptions(mirror=ANY, registries=(registry.host,))
    with ServersInProcess(root, options) as servers:
        yield servers.mirror


@pytest.mark.parametrize("name", FAULTS)
def test_every_answer_is_one_of_the_specification(
    mirror: str, registry: FaultyRegistry, name: str
) -> None:
    registry.faults = (FAULTS[name],)
    for number, path in enumerate(PATHS):
        # A repository of its own: refusals are remembered.
        repository = f"{name.replace(' ', '')}/m{number}"
        answer = fetch(mirror, f"/v2/{repository}/{path}?ns={registry.host}")
        assert answer.status in (200, 401, 404, 429, 502, 503), (path, answer.body[:300])
        if answer.status != 200:
            (error,) = json.loads(answer.body)["errors"]
            assert error["code"] in CODES
        if answer.status == 401:
            assert answer.headers["www-authenticate"].strip()


@pytest.mark.parametrize("header", ["Basic !", "Basic eA==", "Negotiate x", "Bearer", "x" * 8000])
def test_credentials_that_cannot_be_read_get_a_challenge(
    mirror: str, registry: FaultyRegistry, header: str
) -> None:
    for path in PATHS:
        address = f"/v2/team/m/{path}?ns={registry.host}"
        answer = fetch(mirror, address, headers={"Authorization": header})
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
        assert json.loads(answer.body)["errors"][0]["code"] == "UNAUTHORIZED"

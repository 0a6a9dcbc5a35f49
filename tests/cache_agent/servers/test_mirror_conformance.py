"""The mirror against the distribution specification v1.1: the cases of "Pull" and "Content Discovery".

Every case is asked in both forms of address, `?ns=` and the registry in the path, for what the node has and for what it
passes on. Pushing isn't served: it is a 405.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache_agent.daemon.servers import ServerOptions
from cache_agent.servers.mirror.discovery import query_of
from cache_agent.servers.mirror.mirror_routes import RequestKind
from modelimage.access import Access, open_image_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.mediatypes import OCI_INDEX, OCI_MANIFEST
from modelimage.reference import parse_image
from modelimage.referrers import ArtifactFile, attach, make_artifact
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.agents import ANY, ServersInProcess
from tests.cache_agent.servers.http_client import HttpAnswer, fetch
from tests.cache_agent.servers.published import PublishedModel, publish_model
from tests.servers.faulty_registry import FaultyRegistry
from tests.servers.registry import DockerRegistry
from tests.servers.registry_kinds import KnowsReferrers, ListsTagsInPages

pytestmark = pytest.mark.servers
REPOSITORY = "team/model"
ABSENT = Digest.of(b"nothing has this digest")
ATTACHED = ("application/vnd.test.sbom", "application/vnd.test.report")
TYPES = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}
# The specification's table of codes, and distribution's code of a failing registry.
CODES = {
    "BLOB_UNKNOWN", "DIGEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS", "UNAVAILABLE",
}  # fmt: skip


@dataclass(frozen=True)
class Mirrored:
    """A mirror of a registry with one model of three tags, and signed twice."""

    servers: ServersInProcess
    registry: str
    model: PublishedModel
    in_path: bool

    def fetch(self, below: str, method: str = "GET", **headers: str) -> HttpAnswer:
        """Ask for a path below the repository."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return fetch(self.servers.mirror, self.address(below), method=method, headers=named)

    def address(self, below: str, repository: str = REPOSITORY) -> str:
        if self.in_path:
            return f"/v2/{self.registry.replace(':', '_')}/{repository}/{below}"
        return f"/v2/{repository}/{below}{'&' if '?' in below else '?'}ns={self.registry}"

    @property
    def manifest(self) -> tuple[Digest, bytes]:
        """The tagged manifest."""
        return next((d, m) for d, m in self.model.manifests.items() if b'"layers"' in m)


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, PublishedModel]]:
    with DockerRegistry() as registry, FaultyRegistry(registry.host, KnowsReferrers()) as front:
        image = f"{front.host}/{REPOSITORY}:v1"
        model = publish_model(image, seed=71)
        reference = parse_image(image)
        repository = open_image_repository(reference, Access())
        digest, data = next((d, m) for d, m in model.manifests.items() if b'"layers"' in m)
        subject = Descriptor(OCI_MANIFEST, digest, len(data))
        for tag in ("v2", "v3"):
            repository.put_manifest(subject, data, tag)
        for kind in ATTACHED:
            file = ArtifactFile("f", "text/plain", kind.encode())
            attach(repository, make_artifact(subject, kind, [file]))
        yield front.host, model


@pytest.fixture(scope="module", params=["cached", "passed on"])
def servers(
    request: pytest.FixtureRequest,
    upstream: tuple[str, PublishedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServersInProcess]:
    root = tmp_path_factory.mktemp("conformance")
    options = ServerOptions(mirror=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"))
    with ServersInProcess(root / "store", options) as servers:
        if request.param == "cached":
            servers.pull(upstream[1].image)
        yield servers
    assert findings(root / "store") == []


@pytest.fixture(params=["ns", "path"])
def mirrored(
    request: pytest.FixtureRequest,
    upstream: tuple[str, PublishedModel],
    servers: ServersInProcess,
) -> Mirrored:
    return Mirrored(servers, *upstream, in_path=request.param == "path")


def errors(answer: HttpAnswer) -> set[str]:
    """The codes of an error's body, whose form is checked."""
    assert answer.headers["content-type"].startswith("application/json")
    (error,) = json.loads(answer.body)["errors"]
    assert re.fullmatch(r"[A-Z_]+", error["code"])
    assert isinstance(error["message"], str)
    return {error["code"]} & CODES


# -- pull ------------------------------------------------------------------------------------


def test_the_base_address_says_that_this_is_a_registry(mirrored: Mirrored) -> None:
    for path in ("/v2/", "/v2"):
        assert fetch(mirrored.servers.mirror, path).status == 200
        assert fetch(mirrored.servers.mirror, path, method="HEAD").status == 200


def test_a_manifest_is_pulled_by_digest_and_by_tag(mirrored: Mirrored) -> None:
    for digest, data in mirrored.model.manifests.items():
        kind = json.loads(data)["mediaType"]
        names = [str(digest), *(["v2"] if digest == mirrored.manifest[0] else [])]
        for name in names:
            got, head = (mirrored.fetch(f"manifests/{name}", m, **TYPES) for m in ("GET", "HEAD"))
            assert (got.status, got.body, head.status, head.body) == (200, data, 200, b"")
            for answer in (got, head):
                assert answer.headers["content-type"] == kind
                assert answer.headers["docker-content-digest"] == str(digest)
                assert answer.headers["content-length"] == str(len(data))


def test_a_blob_is_pulled(mirrored: Mirrored) -> None:
    for digest, data in mirrored.model.blobs.items():
        got, head = (mirrored.fetch(f"blobs/{digest}", method) for method in ("GET", "HEAD"))
        assert (got.status, got.body == data, head.status, head.body) == (200, True, 200, b"")
        for answer in (got, head):
            assert answer.headers["docker-content-digest"] == str(digest)
            assert answer.headers["content-length"] == str(len(data))
            assert answer.headers["accept-ranges"] == "bytes"


def test_a_part_of_a_blob_is_pulled(mirrored: Mirrored) -> None:
    layer = mirrored.model.weight_layer
    data = mirrored.model.blobs[layer]
    size = len(data)
    wanted = {
        "0-0": (0, 1),
        "100-999": (100, 1000),
        f"{size - 5}-": (size - 5, size),
        "-7": (size - 7, size),
    }
    for stated, (start, stop) in wanted.items():
        part = mirrored.fetch(f"blobs/{layer}", Range=f"bytes={stated}")
        assert (part.status, part.body) == (206, data[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    beyond = mirrored.fetch(f"blobs/{layer}", Range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    head = mirrored.fetch(f"blobs/{layer}", "HEAD", Range="bytes=0-9")
    assert (head.status, head.headers["content-length"]) == (200, str(size))


def test_what_a_client_has_is_not_sent_again(mirrored: Mirrored) -> None:
    layer, (digest, _) = mirrored.model.weight_layer, mirrored.manifest
    etags = {f"blobs/{layer}": layer, "manifests/v1": None, f"manifests/{digest}": digest}
    for below, etag in etags.items():
        stated = f'"{etag}"' if etag else mirrored.fetch(below).headers["etag"]
        for method in ("GET", "HEAD"):
            answer = mirrored.fetch(below, method, If_None_Match=stated)
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", stated)
        assert mirrored.fetch(below, If_None_Match='"other"').status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("below", "status", "code"),
    [
        ("manifests/none", 404, "MANIFEST_UNKNOWN"),
        (f"manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        (f"blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("manifests/.x", 404, "MANIFEST_UNKNOWN"),
        ("manifests/sha256:x", 400, "DIGEST_INVALID"),
        ("blobs/sha256:x", 400, "DIGEST_INVALID"),
        ("blobs/v1", 400, "DIGEST_INVALID"),
        ("referrers/v1", 400, "DIGEST_INVALID"),
        ("other/v1", 404, "UNSUPPORTED"),
        ("blobs/uploads/", 404, "UNSUPPORTED"),
    ],
)
def test_what_is_not_there_has_its_code(
    mirrored: Mirrored, method: str, below: str, status: int, code: str
) -> None:
    answer = mirrored.fetch(below, method)
    assert answer.status == status
    if method == "GET":
        assert errors(answer) == {code}


def test_an_unknown_repository_is_unknown(mirrored: Mirrored) -> None:
    for below in ("manifests/v1", f"blobs/{ABSENT}", "tags/list"):
        answer = fetch(mirrored.servers.mirror, mirrored.address(below, "team/none"))
        assert (answer.status, bool(errors(answer))) == (404, True)


@pytest.mark.parametrize(
    ("accept", "taken"),
    [
        (None, True), ("", True), ("*/*", True), ("application/*", True), (OCI_MANIFEST, True),
        (f"text/html, {OCI_MANIFEST};q=0.5", True), (OCI_MANIFEST.upper(), True),
        ("application/vnd.docker.distribution.manifest.v2+json", False), (OCI_INDEX, False),
        (f"{OCI_MANIFEST};q=0", False), ("text/*", False),
    ],
)  # fmt: skip
def test_a_manifest_is_given_to_those_who_take_its_type(
    mirrored: Mirrored, accept: str | None, taken: bool
) -> None:
    digest, _ = mirrored.manifest
    headers = {} if accept is None else {"Accept": accept}
    for name in ("v2", digest):
        answer = mirrored.fetch(f"manifests/{name}", **headers)
        assert answer.status == (200 if taken else 404)
        if not taken:
            assert errors(answer) == {"MANIFEST_UNKNOWN"}


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
def test_nothing_is_pushed_or_deleted(mirrored: Mirrored, method: str) -> None:
    for below in ("manifests/v1", f"blobs/{ABSENT}", "blobs/uploads/"):
        answer = mirrored.fetch(below, method)
        assert (answer.status, errors(answer)) == (405, {"UNSUPPORTED"})


# -- content discovery -----------------------------------------------------------------------


def tags_of(answer: HttpAnswer) -> list[str]:
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return list(json.loads(answer.body)["tags"])


def test_tags_are_listed(mirrored: Mirrored) -> None:
    assert set(tags_of(mirrored.fetch("tags/list"))) >= {"v1", "v2", "v3"}
    head = mirrored.fetch("tags/list", "HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("in_path", [True, False])
def test_pages_of_tags_lead_to_the_next_through_the_mirror(tmp_root: Path, in_path: bool) -> None:
    every = [f"v{number}" for number in range(7)]
    options = ServerOptions(mirror=ANY, registries=("127.0.0.1:*",))
    with (
        DockerRegistry() as registry,
        FaultyRegistry(registry.host, ListsTagsInPages(every)) as front,
        ServersInProcess(tmp_root / "store", options) as servers,
    ):
        model = publish_model(f"{front.host}/{REPOSITORY}:v1", seed=73)
        mirrored = Mirrored(servers, front.host, model, in_path)
        answer = mirrored.fetch("tags/list?n=3&x=y")
        pages = [tags_of(answer)]
        while link := answer.headers.get("link"):
            match = re.fullmatch(r'<(/v2/[^>]*)>; rel="next"', link)
            assert match
            answer = fetch(servers.mirror, match[1])
            pages.append(tags_of(answer))
        assert pages == [every[:3], every[3:6], every[6:]]
        assert tags_of(mirrored.fetch("tags/list?n=2&last=v1")) == ["v2", "v3"]
        assert tags_of(mirrored.fetch("tags/list?n=0")) == []
    assert findings(tmp_root / "store") == []


def test_referrers_are_listed(mirrored: Mirrored) -> None:
    digest, _ = mirrored.manifest
    answer = mirrored.fetch(f"referrers/{digest}")
    assert (answer.status, answer.headers["content-type"]) == (200, OCI_INDEX)
    listed = json.loads(answer.body)["manifests"]
    assert {each["artifactType"] for each in listed} == set(ATTACHED)
    for each in listed:
        got = mirrored.fetch(f"manifests/{each['digest']}")
        assert json.loads(got.body)["subject"]["digest"] == str(digest)
    some = mirrored.fetch(f"referrers/{digest}?artifactType=application%2Fvnd.test.sbom")
    assert len(json.loads(some.body)["manifests"]) == 1
    assert some.headers["oci-filters-applied"] == "artifactType"
    none = mirrored.fetch(f"referrers/{ABSENT}")
    assert (none.status, json.loads(none.body)["manifests"]) == (200, [])


def test_a_registry_without_referrers_is_one_through_the_mirror(
    registry: DockerRegistry, tmp_root: Path, unique_name: Callable[[str], str]
) -> None:
    """Then clients read the index tagged `sha256-<hex>`, which is passed on like any other."""
    image = f"{registry.host}/{unique_name('plain')}:v1"
    model = publish_model(image, seed=72)
    options = ServerOptions(mirror=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"))
    repository, subject = image.partition("/")[2].rpartition(":")[0], next(iter(model.manifests))
    with ServersInProcess(tmp_root / "store", options) as servers:
        answer = fetch(servers.mirror, f"/v2/{repository}/referrers/{subject}?ns={registry.host}")
        assert (answer.status, errors(answer)) == (404, {"UNSUPPORTED"})
    assert findings(tmp_root / "store") == []


def test_a_list_of_a_registry_that_is_not_there_is_unavailable(
    tmp_root: Path, deserted: str
) -> None:
    options = ServerOptions(mirror=ANY, registries=("127.0.0.1:*", "*.0.0.1:*"))
    with ServersInProcess(tmp_root / "store", options) as servers:
        for below in ("tags/list", f"referrers/{ABSENT}"):
            answer = fetch(servers.mirror, f"/v2/m/{below}?ns={deserted}")
            assert (answer.status, errors(answer)) == (502, {"UNAVAILABLE"})
            foreign = fetch(servers.mirror, f"/v2/m/{below}?ns=reg.test")
            assert (foreign.status, bool(errors(foreign))) == (404, True)
    assert findings(tmp_root / "store") == []


@pytest.mark.parametrize(
    ("kind", "stated", "passed"),
    [
        (RequestKind.TAGS, "n=2&last=v1&ns=reg.test", "n=2&last=v1"),
        (RequestKind.TAGS, "x=1&last=a%26b%0d%0a", "last=a%26b%0D%0A"),
        (RequestKind.TAGS, f"last={'x' * 600}", ""),
        (RequestKind.REFERRERS, "artifactType=a/b&n=3&service=x", "artifactType=a%2Fb&n=3"),
    ],
)
def test_parameters_of_the_specification_alone_are_passed_on(
    kind: RequestKind, stated: str, passed: str
) -> None:
    assert query_of(kind, stated) == passed


@pytest.mark.parametrize("stated", ["n=1&" * 40, "last=\udcff"])
def test_an_odd_query_is_a_bad_request(stated: str) -> None:
    with pytest.raises(InvalidInput, match="malformed"):
        query_of(RequestKind.TAGS, stated)

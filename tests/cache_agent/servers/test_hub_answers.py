"""Answers of a Hub that are no listing, or too much of one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cache_agent.access.callers import NOBODY
from cache_agent.access.upstream import blob_size
from cache_agent.servers.hub.hub_client import HubUpstream
from cache_agent.servers.hub.repo_files import RepoFiles
from cache_agent.servers.mirror.discovery import fetch_listing
from cache_agent.servers.mirror.mirror_routes import MirrorRequest, RequestKind
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, RemoteRefused
from modelimage.reference import parse_registry
from modelimage.registry.client import RegistryRepository
from modelimage.registry.exchange import WebOrigin
from tests.modelimage.exchanges import Answer, ScriptedSender

HUB = "https://hub.example"
ENTRY = {"type": "file", "path": "a", "size": 1, "oid": "0" * 40}


def answering(document: Any) -> HubUpstream:
    body = json.dumps(document).encode()
    return HubUpstream(HUB, ScriptedSender(lambda request, number: Answer(200, body=body)))


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        None,
        7,
        "x",
        {"sha": 7},
        {"sha": "x" * 40},
        [{"sha": "0" * 40}],
        {"sha": "0" * 40, "tags": ["\ud800"]},
    ],
)
def test_what_names_no_commit_is_refused(document: Any) -> None:
    with pytest.raises(RemoteRefused):
        answering(document).describe("org/model", "main", NOBODY)


@pytest.mark.parametrize("document", [{}, None, 7, "x", [ENTRY] * 100_001])
def test_what_is_no_listing_is_refused(document: Any) -> None:
    with pytest.raises(RemoteRefused):
        answering(document).tree("org/model", "0" * 40, NOBODY)


# No address, an invalid port, a host whose normal form has a slash, and another host.
LINKS = (
    "http://[",
    "//[x]/a",
    "http://hub.example:99999/",
    "http://\u2100/",
    "https://other.example/",
    "file:///etc",
)


@pytest.mark.parametrize("link", LINKS)
def test_a_page_is_at_the_same_place(link: str) -> None:
    answer = Answer(200, {"Link": f'<{link}>; rel="next"'}, json.dumps([ENTRY]).encode())
    hub = HubUpstream(HUB, ScriptedSender(lambda request, number: answer))
    with pytest.raises(RemoteRefused, match="links to"):
        hub.tree("org/model", "0" * 40, NOBODY)


@pytest.mark.parametrize("link", [*LINKS[:2], LINKS[3], "/v2/m/tags/list?" + "n=1&" * 40])
def test_a_registrys_page_has_an_address_too(link: str) -> None:
    body = b'{"name": "m", "tags": ["a"]}'
    answer = Answer(200, {"Link": f'<{link}>; rel="next"'}, body)
    repository = RegistryRepository(
        ScriptedSender(lambda request, number: answer), WebOrigin.parse("https://r.example"), "m"
    )
    wanted = MirrorRequest(RequestKind.TAGS, parse_registry("r.example/m"))
    with pytest.raises(RemoteRefused, match="links to"):
        fetch_listing(repository, wanted, "")


@pytest.mark.parametrize("size", [-1, True, 1.5, float("inf"), "7", None, 10**400, 1 << 60])
def test_a_size_is_a_whole_number_of_bytes(size: Any) -> None:
    with pytest.raises(InvalidImage):
        RepoFiles.from_tree("org/model", "0" * 40, [{**ENTRY, "size": size}])


@pytest.mark.parametrize("length", ["", "-1", "²", "9" * 5000, "1e3", None])
def test_a_blobs_size_is_one_too(length: str | None) -> None:
    headers = {} if length is None else {"Content-Length": length}
    sender = ScriptedSender(lambda request, number: Answer(200, headers))
    repository = RegistryRepository(sender, WebOrigin.parse("https://r.example"), "m")
    with pytest.raises(RemoteRefused):
        blob_size(repository, Digest.of(b"x"))

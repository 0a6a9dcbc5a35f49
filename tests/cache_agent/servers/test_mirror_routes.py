"""The mirror's addresses and its part of containerd's configuration: pure grammar, any input."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.servers.mirror.containerd import (
    configure,
    unconfigure,
    with_mirror,
    without_mirror,
)
from cache_agent.servers.mirror.mirror_routes import (
    BadAddress,
    MirrorRequest,
    RequestKind,
    parse_address,
)
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import RegistryReference
from weightyard.cli import main

DIGEST = Digest("ab" * 32)


@pytest.mark.parametrize(
    ("path", "namespace", "image"),
    [
        ("/v2/team/m/manifests/v1", "reg.test", RegistryReference("reg.test", "team/m", "v1")),
        ("/v2/reg.test/team/m/manifests/v1", None, RegistryReference("reg.test", "team/m", "v1")),
        ("/v2/reg.test_5000/m/manifests/v1", None, RegistryReference("reg.test:5000", "m", "v1")),
        ("/v2/localhost/m/manifests/v1", None, RegistryReference("localhost", "m", "v1")),
        ("/v2/library/x/manifests/v1", "docker.io", RegistryReference("docker.io", "library/x", "v1")),
        (f"/v2/m/blobs/{DIGEST}", "reg.test:5", RegistryReference("reg.test:5", "m", None, DIGEST)),
        ("/v2/a/manifests/b/blobs/manifests/v1", "r.t", RegistryReference("r.t", "a/manifests/b/blobs", "v1")),
    ],
)  # fmt: skip
def test_addresses(path: str, namespace: str | None, image: RegistryReference) -> None:
    wanted = parse_address(path, namespace)
    assert wanted is not None
    assert wanted.image == image
    assert wanted.kind is (RequestKind.BLOB if "/blobs/sha256" in path else RequestKind.MANIFEST)


def test_lists_have_addresses_too() -> None:
    tags = parse_address("/v2/reg.test/team/m/tags/list", None)
    assert tags == MirrorRequest(RequestKind.TAGS, RegistryReference("reg.test", "team/m"))
    assert tags.upstream_path == "tags/list"
    referrers = parse_address(f"/v2/m/referrers/{DIGEST}", "reg.test")
    image = RegistryReference("reg.test", "m", digest=DIGEST)
    assert referrers == MirrorRequest(RequestKind.REFERRERS, image)
    assert referrers.upstream_path == f"referrers/{DIGEST}"


@pytest.mark.parametrize(
    ("path", "namespace", "status"),
    [
        ("/", None, 404),
        ("/v1/", None, 404),
        ("/v2/m/tags/other", "reg.test", 404),
        ("/v2/tags/list", "reg.test", 404),
        ("/v2/m/referrers/v1", "reg.test", 400),
        ("/v2/m/manifests/v1", None, 404),
        ("/v2/m/manifests/v1", "reg/evil", 400),
        ("/v2/m/manifests/v1", "reg", 400),
        ("/v2/m/manifests/v1", "user@reg.test", 400),
        ("/v2/../../etc/manifests/v1", "reg.test", 400),
        ("/v2/%2e%2e/manifests/v1", "reg.test", 400),
        ("/v2/M/manifests/v1", "reg.test", 400),
        ("/v2/m:v1/manifests/v1", "reg.test", 400),
        ("/v2/m/manifests/.v1", "reg.test", 404),
        ("/v2/m/blobs/v1", "reg.test", 400),
        ("/v2/m/blobs/sha256:AB", "reg.test", 400),
        ("/v2/m/blobs/sha512:" + "ab" * 64, "reg.test", 400),
        ("/v2/" + "a/" * 600 + "manifests/v1", "reg.test", 404),
    ],
)
def test_bad_addresses_have_their_codes(path: str, namespace: str | None, status: int) -> None:
    with pytest.raises(BadAddress) as caught:
        parse_address(path, namespace)
    assert caught.value.status == status


parts = st.sampled_from(
    ["v2", "manifests", "blobs", "", ".", "..", "%2e", "reg.test", "reg_5", str(DIGEST), "latest", "uploads", "m"]
)  # fmt: skip
paths = st.builds(lambda p: "/" + "/".join(p), st.lists(parts | st.text(max_size=8), max_size=8))


@given(
    st.just("/v2/").flatmap(lambda head: paths.map(lambda p: head + p[1:])) | paths | st.text(),
    st.none() | st.text(max_size=20),
)
def test_any_address_is_understood_or_refused(path: str, namespace: str | None) -> None:
    try:
        wanted = parse_address(path, namespace)
    except BadAddress:
        return
    if wanted is not None:
        assert ".." not in wanted.image.repository.split("/")
        assert namespace in (None, "", wanted.image.registry)


OTHERS = 'server = "https://reg.test"\n\n[host."https://eu.reg.test"]\n  capabilities = ["pull"]\n'
URL = "http://127.0.0.1:5080"
lines = st.sampled_from(
    ["# note\n", "\n", 'server = "https://r.test"\n', '[host."https://a.test"]\n', 'ca = "/x"\n', '[host."https://b.test".header]\n']
)  # fmt: skip


@given(st.lists(lines, max_size=6).map("".join))
def test_what_was_put_into_a_hosts_file_can_be_taken_out(text: str) -> None:
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(InvalidInput):
            with_mirror(text, URL)
        return
    made = with_mirror(text, URL)
    assert without_mirror(made) == text
    assert with_mirror(made, URL) == made
    after = tomllib.loads(made)
    assert next(iter(after["host"])) == URL
    assert {k: v for k, v in after["host"].items() if k != URL} == before.get("host", {})
    assert after.get("server") == before.get("server")


def test_configuring_is_idempotent_and_leaves_nothing_when_undone(tmp_path: Path) -> None:
    (tmp_path / "reg.test").mkdir()
    other = tmp_path / "reg.test/hosts.toml"
    other.write_text(OTHERS)
    assert len(configure(tmp_path, ["reg.test", "ghcr.io"], URL)) == 2
    assert configure(tmp_path, ["reg.test", "ghcr.io"], URL) == []
    assert list(tomllib.loads(other.read_text())["host"]) == [URL, "https://eu.reg.test"]
    assert len(configure(tmp_path, ["ghcr.io"], "http://127.0.0.1:9")) == 1
    assert len(unconfigure(tmp_path)) == 2
    assert other.read_text() == OTHERS
    assert [each.name for each in tmp_path.iterdir()] == ["reg.test"]


def test_the_command_configures_and_takes_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["configure-containerd", str(tmp_path / "certs.d")]
    assert main([*command, "--mirror", f"{URL}/", "--registry", "reg.test"]) == 0
    path = tmp_path / "certs.d/reg.test/hosts.toml"
    assert list(tomllib.loads(path.read_text())["host"]) == [URL]
    assert capsys.readouterr().out == f"{path}\n"
    assert main([*command, "--remove"]) == 0
    assert not path.exists()
    assert main(command) == 2
    assert "--mirror" in capsys.readouterr().err


def test_an_agent_without_a_mirror_configures_no_containerd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, certs = str(tmp_path / "store"), str(tmp_path / "certs.d")
    assert main(["agent", "--root", root, "--configure-containerd", certs]) == 2
    assert "Add --mirror" in capsys.readouterr().err
    assert not (tmp_path / "certs.d").exists()


def test_a_broken_hosts_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "reg.test").mkdir()
    (tmp_path / "reg.test/hosts.toml").write_text("[host")
    with pytest.raises(InvalidInput):
        configure(tmp_path, ["reg.test"], URL)
    assert (tmp_path / "reg.test/hosts.toml").read_text() == "[host"

"""Credentials: docker's config file, its helpers (a real program), pull secrets; and that secrets don't leak."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.access import Access
from modelimage.errors import AccessDenied, InvalidInput, NotFound
from modelimage.registry.credentials import (
    Anonymous,
    BasicCredential,
    DockerConfig,
    ExplicitCredential,
    FirstOf,
    IdentityToken,
    RegistryToken,
    from_environment,
    load_docker_config,
    run_helper,
)

ALICE = BasicCredential("alice", "pass:word")


def encoded(credential: BasicCredential) -> dict[str, str]:
    pair = f"{credential.username}:{credential.password}".encode()
    return {"auth": base64.b64encode(pair).decode()}


def config(document: Any, answers: dict[tuple[str, str], str] | None = None) -> DockerConfig:
    return DockerConfig.parse(
        json.dumps(document).encode(),
        what="config.json",
        run=lambda name, server: (answers or {}).get((name, server), ""),
    )


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("r.example", "r.example"),
        ("https://r.example", "r.example"),
        ("https://r.example/v2/", "r.example"),
        ("r.example:5000", "r.example:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("*.example", "r.example"),
        ("r.example/team", "r.example"),
        ("r.example/team/model", "r.example"),
    ],
)
def test_a_key_matches_its_registry(key: str, registry: str) -> None:
    assert config({"auths": {key: encoded(ALICE)}}).find(registry, "team/model") == ALICE


@pytest.mark.parametrize(
    "key", ["other.example", "r.example:5000", "r.example/other", "r.example/tea", "*", "*.com"]
)
def test_a_key_matches_no_other(key: str) -> None:
    assert config({"auths": {key: encoded(ALICE)}}).find("r.example", "team/model") is None


def test_the_key_that_says_most_wins() -> None:
    others = {f"u{index}": BasicCredential(f"u{index}", "x") for index in range(3)}
    keys = ["r.example", "r.example/team/model", "*.example/team"]
    auths = {key: encoded(other) for key, other in zip(keys, others.values(), strict=True)}
    assert config({"auths": auths}).find("r.example", "team/model") == others["u1"]
    assert config({"auths": auths}).find("r.example", "team/other") == others["u2"]
    assert config({"auths": auths}).find("r.example", "else") == others["u0"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"identitytoken": "t"}, IdentityToken("t")),
        ({"registrytoken": "t"}, RegistryToken("t")),
        ({"username": "alice", "password": "pass:word"}, ALICE),
        ({"auth": base64.b64encode(b"alice:pass:word\0").decode()}, ALICE),
        ({}, None),
        ({"auth": ""}, None),
    ],
)
def test_the_forms_of_an_entry(entry: dict[str, str], expected: object) -> None:
    assert config({"auths": {"r.example": entry}}).find("r.example", "m") == expected


def test_helpers_win_over_the_store_and_both_over_the_file() -> None:
    document = {
        "auths": {"a.example": encoded(ALICE), "b.example": encoded(ALICE), "c.example": encoded(ALICE)},
        "credHelpers": {"a.example": "cloud"},
        "credsStore": "desktop",
    }  # fmt: skip
    found = config(
        document,
        {
            ("cloud", "a.example"): '{"Username":"a","Secret":"1"}',
            ("desktop", "b.example"): '{"Username":"<token>","Secret":"2"}',
        },
    )
    assert found.find("a.example", "m") == BasicCredential("a", "1")
    assert found.find("b.example", "m") == IdentityToken("2")
    assert found.find("c.example", "m") == ALICE


def test_helpers_know_docker_hub_by_its_old_name() -> None:
    server = "https://index.docker.io/v1/"
    found = config({"credsStore": "x"}, {("x", server): '{"Username":"a","Secret":"1"}'})
    assert found.find("docker.io", "library/m") == BasicCredential("a", "1")


@pytest.mark.parametrize("answer", ["nonsense", "[]", "{}", '{"Username":"a"}'])
def test_a_helper_that_talks_nonsense_denies_access(answer: str) -> None:
    with pytest.raises(AccessDenied):
        config({"credsStore": "x"}, {("x", "r.example"): answer}).find("r.example", "m")


def install_helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_real_helper_is_asked_on_its_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    install_helper(
        tmp_path, "echo", 'read server; echo "{\\"Username\\":\\"$1\\",\\"Secret\\":\\"$server\\"}"'
    )
    install_helper(tmp_path, "empty", 'echo "credentials not found in native keychain"; exit 1')
    install_helper(tmp_path, "broken", 'echo "vault is sealed" >&2; exit 1')
    assert json.loads(run_helper("echo", "r.example")) == {
        "Username": "get",
        "Secret": "r.example",
    }
    assert run_helper("empty", "r.example") == ""
    with pytest.raises(AccessDenied, match="vault is sealed"):
        run_helper("broken", "r.example")
    with pytest.raises(AccessDenied, match="can't be run"):
        run_helper("absent", "r.example")
    with pytest.raises(AccessDenied, match="not the name"):
        run_helper("../evil", "r.example")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"auths": 5}', '{"auths": {"r": 5}}', '{"auths": {"r": {"auth": "!"}}}', '{"credHelpers": 5}',
     '{"auths": {"r": {"auth": "/w=="}}}'],
)  # fmt: skip
def test_a_broken_config_is_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput, match="config"):
        DockerConfig.parse(text.encode(), what="config.json")


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["auths", "credHelpers", "r", "auth", "identitytoken"]), inner)))  # fmt: skip
def test_no_config_raises_anything_else(document: object) -> None:
    try:
        DockerConfig.parse(json.dumps(document).encode(), what="c", run=lambda *_: "").find(
            "r", "m"
        )
    except InvalidInput:
        return


def test_where_the_environment_says(tmp_path: Path) -> None:
    def write(path: Path, user: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {"r": encoded(BasicCredential(user, "x"))}}))

    home = tmp_path / "home"
    assert from_environment({}, home).find("r", "m") is None
    write(tmp_path / "run/containers/auth.json", "podman")
    environment = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(home)}
    assert from_environment(environment, home).find("r", "m") == BasicCredential("podman", "x")
    write(home / ".docker/config.json", "home")
    assert from_environment(environment, home).find("r", "m") == BasicCredential("home", "x")
    write(tmp_path / "docker/config.json", "docker")
    environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    assert from_environment(environment, home).find("r", "m") == BasicCredential("docker", "x")
    write(tmp_path / "auth.json", "explicit")
    environment["REGISTRY_AUTH_FILE"] = str(tmp_path / "auth.json")
    access = Access.from_environment(environment, plain_http=["h"])
    assert access.credentials.find("r", "m") == BasicCredential("explicit", "x")
    assert access.plain_http == {"h"}


def test_a_mounted_pull_secret_is_a_docker_config(tmp_path: Path) -> None:
    path = tmp_path / ".dockerconfigjson"
    path.write_text(json.dumps({"auths": {"https://r.example": {**encoded(ALICE), "email": "x"}}}))
    assert load_docker_config(path).find("r.example", "m") == ALICE
    with pytest.raises(NotFound):
        load_docker_config(tmp_path / "absent")


def test_the_first_source_that_knows_wins() -> None:
    explicit = ExplicitCredential("r.example", ALICE)
    sources = FirstOf([Anonymous(), explicit, config({"auths": {"q": encoded(ALICE)}})])
    assert sources.find("r.example", "m") == ALICE
    assert sources.find("q", "m") == ALICE
    assert sources.find("other", "m") is None


@pytest.mark.parametrize(
    "holder",
    [ALICE, IdentityToken("pass:word"), RegistryToken("pass:word"), ExplicitCredential("r", ALICE),
     config({"auths": {"r": encoded(ALICE)}}), Access(ExplicitCredential("r", ALICE))],
)  # fmt: skip
def test_no_secret_stands_in_a_repr(holder: object) -> None:
    assert "pass:word" not in repr(holder)
    assert encoded(ALICE)["auth"] not in repr(holder)

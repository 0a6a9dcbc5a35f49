"""Kubeconfigs lead where kubectl would go with them."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
import yaml

from cache_agent.api.kube.connection import Connection, TokenCredentials, in_cluster
from cache_agent.api.kube.kubeconfig import default_connection, from_kubeconfig
from modelimage.errors import AccessDenied, InvalidInput, NotFound

V1 = "client.authentication.k8s.io/v1"


def kubeconfig(path: Path, user: dict[str, object], **cluster: object) -> Path:
    path.write_text(yaml.safe_dump({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "n"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://api.test/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }))  # fmt: skip
    return path


def headers(connection: Connection) -> dict[str, str]:
    return asyncio.run(connection.credentials.headers())


def connect(*paths: Path, context: str | None = None, **environ: str) -> Connection:
    return from_kubeconfig(paths, context=context, programs=True, environ=environ)


def test_token_and_namespace(tmp_path: Path) -> None:
    found = connect(kubeconfig(tmp_path / "k", {"token": "t"}))
    assert found == Connection("http://api.test", TokenCredentials(token="t"), namespace="n")


def test_a_token_file_is_relative_to_its_kubeconfig_and_read_for_each_request(
    tmp_path: Path,
) -> None:
    found = connect(kubeconfig(tmp_path / "k", {"tokenFile": "token", "token": "unused"}))
    for text in ("first\n", "renewed\n"):
        (tmp_path / "token").write_text(text)
        assert headers(found) == {"Authorization": f"Bearer {text.strip()}"}


def test_files_are_merged_and_the_first_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    kubeconfig(first, {"token": "first"})
    document = yaml.safe_load(kubeconfig(second, {"token": "second"}).read_text())
    document["contexts"].append({"name": "other", "context": {"cluster": "k2"}})
    document["clusters"].append({"name": "k2", "cluster": {"server": "http://other.test"}})
    second.write_text(yaml.safe_dump(document))
    assert headers(connect(first, second)) == {"Authorization": "Bearer first"}
    assert headers(connect(tmp_path / "missing", second)) == {"Authorization": "Bearer second"}
    assert connect(first, second, context="other").server == "http://other.test"


def test_proxy_server_name_and_impersonation(tmp_path: Path) -> None:
    user = {"token": "t", "as": "jane", "as-groups": ["a", "b"], "as-user-extra": {"scope": ["s"]}}
    path = kubeconfig(
        tmp_path / "k", user, **{"proxy-url": "http://p:1", "tls-server-name": "kube"}
    )
    found = connect(path)
    assert (found.proxy, found.server_name) == ("http://p:1", "kube")
    assert found.impersonate == (
        ("Impersonate-User", "jane"), ("Impersonate-Group", "a"), ("Impersonate-Group", "b"),
        ("Impersonate-Extra-scope", "s"),
    )  # fmt: skip


def test_the_environments_proxy_unless_the_network_is_exempt(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "k", {}, server="http://10.96.0.1")
    assert connect(path, HTTP_PROXY="p:3128").proxy == "http://p:3128"
    assert connect(path, HTTP_PROXY="p:3128", NO_PROXY="10.0.0.0/8").proxy is None


def test_a_program_is_asked_once_and_again_when_its_answer_expired_or_was_refused(
    tmp_path: Path,
) -> None:
    program = tmp_path / "login"
    program.write_text(f"""#!/bin/sh
echo x >> {tmp_path}/calls
echo '{{"apiVersion": "{V1}", "kind": "ExecCredential", "status": {{"token": "'$PREFIX$1'"{{}}}}}}' \
  | sed 's/{{}}/, "expirationTimestamp": "'"$(cat {tmp_path}/until)"'"/'
""")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    until, calls = tmp_path / "until", tmp_path / "calls"
    user = {
        "exec": {
            "apiVersion": V1, "command": "./login", "args": ["t"],
            "env": [{"name": "PREFIX", "value": "p-"}], "interactiveMode": "Never",
        }
    }  # fmt: skip
    until.write_text("2100-01-01T00:00:00Z")
    found = connect(kubeconfig(tmp_path / "k", user))
    assert headers(found) == headers(found) == {"Authorization": "Bearer p-t"}
    assert calls.read_text().split() == ["x"]
    found.credentials.refused()
    until.write_text("2001-01-01T00:00:00Z")
    for number in (2, 3):
        headers(found)
        assert len(calls.read_text().split()) == number


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'session expired' >&2; exit 3", "status 3: session expired"),
        ("echo hello", "no usable ExecCredential"),
        (f'echo \'{{"apiVersion": "{V1}beta1", "status": {{"token": "t"}}}}\'', "apiVersion"),
        (f'echo \'{{"apiVersion": "{V1}", "status": {{}}}}\'', "neither a token"),
    ],
)
def test_a_program_that_can_t_log_in_is_an_error_that_names_it(
    tmp_path: Path, script: str, says: str
) -> None:
    program = tmp_path / "login"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    user = {"exec": {"apiVersion": V1, "command": "./login"}}
    with pytest.raises(AccessDenied, match=says):
        headers(connect(kubeconfig(tmp_path / "k", user)))


def test_a_missing_program_is_an_error_with_its_install_hint(tmp_path: Path) -> None:
    user = {"exec": {"apiVersion": V1, "command": "no-such-login", "installHint": "Get it."}}
    with pytest.raises(AccessDenied, match="no-such-login") as caught:
        headers(connect(kubeconfig(tmp_path / "k", user)))
    assert caught.value.hint == "Get it."


@pytest.mark.parametrize(
    ("user", "cluster", "says"),
    [
        ({"exec": {"command": "aws"}}, {}, "apiVersion"),
        ({"exec": {"command": "aws", "apiVersion": "client.authentication.k8s.io/v1alpha1"}}, {}, "v1alpha1"),
        ({"exec": {"command": "aws", "apiVersion": V1, "interactiveMode": "Always"}}, {}, "terminal"),
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider"),
        ({}, {"server": "https://a", "certificate-authority-data": "?"}, "isn't base64"),
        ({}, {"server": "https://a", "certificate-authority-data": "é"}, "isn't base64"),
        ({}, {"server": "https://a", "certificate-authority-data": "eHg="}, "isn't a PEM"),
        ({"client-certificate-data": "eHg=", "client-key-data": "eHg="}, {"server": "https://a"}, "client certificate"),
        ({"as-groups": 5, "as": "x"}, {}, "usable"),
    ],
)  # fmt: skip
def test_a_kubeconfig_that_can_t_be_used(
    tmp_path: Path, user: dict[str, object], cluster: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        connect(kubeconfig(tmp_path / "k", user, **cluster))


def test_an_agent_runs_no_programs(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "k", {"exec": {"apiVersion": V1, "command": "aws"}})
    with pytest.raises(InvalidInput, match="runs no programs"):
        from_kubeconfig([path], programs=False, environ={})


@pytest.mark.parametrize("text", ["a: [", "[]", "contexts: [{}]", "clusters: 5"])
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(InvalidInput, match="usable kubeconfig"):
        connect(tmp_path / "k")


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "k", {})
    with pytest.raises(InvalidInput, match="no entry 'other'"):
        connect(path, context="other")
    with pytest.raises(NotFound):
        connect(tmp_path / "none")


def test_what_a_program_connects_to(tmp_path: Path) -> None:
    """KUBECONFIG first, then the pod's service account, then the home directory's kubeconfig."""
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    with pytest.raises(NotFound, match="no kubeconfig"):
        default_connection({"HOME": str(home)})
    kubeconfig(home / ".kube" / "config", {"token": "home"})
    assert headers(default_connection({"HOME": str(home)})) == {"Authorization": "Bearer home"}
    both = os.pathsep.join(
        (str(tmp_path / "none"), str(kubeconfig(tmp_path / "k", {"token": "k"})))
    )
    environ = {"HOME": str(home), "KUBECONFIG": both}
    assert headers(default_connection(environ)) == {"Authorization": "Bearer k"}


def test_outside_of_a_pod_there_is_no_service_account() -> None:
    with pytest.raises(NotFound, match="isn't a pod"):
        in_cluster({})

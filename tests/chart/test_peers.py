"""Peers in the chart: keys and certificates that work, made out to each other, and a port for agents alone."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache_agent.config import PeersSection
from cache_agent.config.settings_file import parse_config
from cache_agent.peers.request_signatures import parse_keys
from tests.chart.charting import find, pod_specs, render
from tests.chart.helmserver import HelmServer
from tests.chart.matrix import MATRIX

Json = dict[str, Any]


@pytest.fixture(scope="module")
def objects() -> list[Json]:
    return render()


def peers_settings(objects: list[Json], pod_ip: str) -> PeersSection:
    """As an agent of these objects reads them."""
    container = find(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    given = {each["name"]: each.get("value", "") for each in container["env"]}
    advertise = given["WEIGHTYARD_PEERS__ADVERTISE"].replace("$(POD_IP)", pod_ip)
    text = find(objects, "ConfigMap", "-agent")["data"]["agent.yaml"]
    found = parse_config(text, {"WEIGHTYARD_PEERS__ADVERTISE": advertise}, {}).peers
    assert found is not None
    return found


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Mutual TLS in memory. Raises SSLError when a side refuses the other."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(back, there, server_hostname=name)
    two = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    one.write(b"x")
    assert two.read(1) == b"x"


def test_agents_have_a_key_and_certificates_that_they_accept_of_each_other(
    objects: list[Json], tmp_path: Path
) -> None:
    data = find(objects, "Secret", "-peers")["data"]
    for name, text in data.items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    assert parse_keys((tmp_path / "key").read_text())
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.crt"))
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    for context in (server, client):
        context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    tls = peers_settings(objects, "10.0.0.1").tls
    assert tls is not None
    assert tls.name is not None
    handshake(server, client, tls.name)
    other = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        handshake(server, other, tls.name)


def test_files_of_the_settings_are_those_of_the_secret(objects: list[Json]) -> None:
    settings = peers_settings(objects, "10.0.0.1")
    template = find(objects, "DaemonSet")["spec"]["template"]["spec"]
    (volume,) = [each for each in template["volumes"] if each["name"] == "peers"]
    (mount,) = [
        each for each in template["containers"][0]["volumeMounts"] if each["name"] == "peers"
    ]
    secret = find(objects, "Secret", "-peers")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    assert settings.tls is not None
    files = {settings.key_file, settings.tls.ca, settings.tls.certificate, settings.tls.key}
    assert files == {Path(mount["mountPath"], name) for name in secret["data"]}  # fmt: skip


def test_no_pod_has_the_authoritys_key(objects: list[Json]) -> None:
    authority = find(objects, "Secret", "-peers-ca")["metadata"]["name"]
    for name, spec in pod_specs(objects):
        assert authority not in yaml.safe_dump(spec), name


def test_agents_find_each_other_by_the_headless_service(objects: list[Json]) -> None:
    service = find(objects, "Service", "-peers")
    settings = peers_settings(objects, "10.0.0.1")
    assert service["spec"]["clusterIP"] == "None"
    (port,) = service["spec"]["ports"]
    metadata = service["metadata"]
    assert settings.dns == f"{metadata['name']}.{metadata['namespace']}.svc:{port['port']}"
    assert settings.name() == f"10.0.0.1:{port['port']}"
    given = render(MATRIX["peers-given"])
    assert peers_settings(given, "fd00::1").name() == "[fd00::1]:7946"


def test_only_agents_reach_the_peers_port(objects: list[Json]) -> None:
    rules = find(objects, "NetworkPolicy", "-agent")["spec"]["ingress"]
    (rule,) = [each for each in rules if "peers" in {port["port"] for port in each["ports"]}]
    labels = find(objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    (source,) = rule["from"]
    assert source["podSelector"]["matchLabels"].items() <= labels.items()
    assert "app.kubernetes.io/component" in source["podSelector"]["matchLabels"]


def test_what_is_made_once_is_kept(tmp_path: Path) -> None:
    """By each upgrade; a Secret that was deleted is made anew, by the authority that is there."""

    def secrets(objects: list[Json]) -> tuple[Json, Json]:
        return find(objects, "Secret", "-peers"), find(objects, "Secret", "-peers-ca")

    with HelmServer() as cluster:
        peers, authority = secrets(cluster.upgrade(tmp_path))
        for each in (peers, authority):
            assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
            cluster.keep(each)
        again = secrets(cluster.upgrade(tmp_path))
        assert [each["data"] for each in again] == [peers["data"], authority["data"]]
        cluster.forget("weightyard-peers")
        renewed, kept = secrets(cluster.upgrade(tmp_path))
        assert kept["data"] == authority["data"]
        assert renewed["data"]["ca.crt"] == authority["data"]["tls.crt"] == peers["data"]["ca.crt"]
        assert renewed["data"]["key"] != peers["data"]["key"]
        assert renewed["data"]["tls.crt"] != peers["data"]["tls.crt"]


def test_a_secret_of_ones_own_is_not_made() -> None:
    objects = render(MATRIX["peers-given"])
    assert not [each for each in objects if each["kind"] == "Secret"]
    volumes = find(objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "peers", "secret": {"secretName": "our-peers"}} in volumes

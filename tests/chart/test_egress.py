"""What agents and the controller can reach: no address that the chart blocks, in either family."""

from __future__ import annotations

import ipaddress

import pytest

from tests.chart.charting import Json, find, render

METADATA = [
    "169.254.169.254",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::a9fe:a9fe",
    "100.100.100.200",
]


def outside(policy: Json) -> list[Json]:
    """The address blocks of a policy's egress."""
    peers = [peer for rule in policy["spec"]["egress"] for peer in rule.get("to", ())]
    return [peer["ipBlock"] for peer in peers if "ipBlock" in peer]


def opens(block: Json, address: str) -> bool:
    known = ipaddress.ip_address(address)
    excepted = any(known in ipaddress.ip_network(each) for each in block.get("except", ()))
    return known in ipaddress.ip_network(block["cidr"]) and not excepted


@pytest.mark.parametrize("component", ["agent", "controller"])
def test_metadata_is_blocked_in_both_families(component: str) -> None:
    blocks = outside(find(render({}), "NetworkPolicy", f"-{component}"))
    for address in METADATA:
        assert not any(opens(block, address) for block in blocks), address
    for address in ("8.8.8.8", "2606:4700::1111"):
        assert any(opens(block, address) for block in blocks)
    # The API server refuses an exception outside of its block.
    for block in blocks:
        inside = ipaddress.ip_network(block["cidr"])
        for each in map(ipaddress.ip_network, block.get("except", ())):
            assert each.version == inside.version


def test_the_controller_takes_its_own_registries_or_the_agents() -> None:
    def listed(values: Json) -> list[str]:
        deployment = find(render(values), "Deployment", "-controller")
        args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        return [each.partition("=")[2] for each in args if each.startswith("--registry=")]

    agents = {"agent": {"registries": ["*.example", "r.test:5000"]}}
    assert listed({}) == []
    assert listed(agents) == ["*.example", "r.test:5000"]
    assert listed({**agents, "controller": {"registries": ["own.example"]}}) == ["own.example"]


@pytest.mark.parametrize("host", ["minio.storage:9000", "10.1.0.0/16", "[fd00::7]:443", "fd00::/8"])
def test_internal_hosts_are_passed_on_as_they_are(host: str) -> None:
    values = {"agent": {"internalHosts": [host]}, "controller": {"internalHosts": [host]}}
    objects = render(values)
    for kind, component in (("DaemonSet", "agent"), ("Deployment", "controller")):
        pod = find(objects, kind, f"-{component}")["spec"]["template"]["spec"]
        args = next(each for each in pod["containers"] if each["name"] == component)["args"]
        assert f"--internal-host={host}" in args

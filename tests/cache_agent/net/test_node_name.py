"""A node has one name, whoever asks for it: the CSI driver, the NodeCache or `weightyard doctor`."""

from __future__ import annotations

import pytest

from cache_agent.net.node_name import node_name


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("Node-7.Example.COM", "node-7.example.com"),  # as kubelet registers it
        ("gpu_box\n", "gpu-box"),  # no node of a cluster, but its NodeCache needs a valid name
    ],
)
def test_a_hosts_name_is_spelled_as_kubelet_does(hostname: str, name: str) -> None:
    assert node_name({}, lambda: hostname) == name


def test_the_charts_name_comes_before_the_hosts() -> None:
    assert node_name({"NODE_NAME": "worker-1"}, lambda: "Other") == "worker-1"
    assert node_name({"NODE_NAME": ""}, lambda: "Other") == "other"

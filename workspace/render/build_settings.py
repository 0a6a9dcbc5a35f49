"""What builds in a cluster get from the operator: the same for every Workspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How builds in the cluster reach the world, and what they ask for.

    `plain_http` are registries without TLS, `internal_hosts` hosts at internal addresses that registries may direct
    requests to, `ca` a PEM bundle of additional authorities, `env` variables such as those of a proxy, `requests`
    and `limits` the container's, by resource. `blocked` are networks that builds may not reach, IPv4 and IPv6, such as
    the cloud's metadata, which has the node's credentials.
    """

    plain_http: tuple[str, ...] = ()
    internal_hosts: tuple[str, ...] = ()
    ca: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "1", "memory": "1Gi"})
    limits: Mapping[str, str] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()

"""Where the pods of Workspaces send their spans: what the operator says of it, and the egress that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelimage.trace_headers import ENDPOINTS, is_on
from workspace.runtime_spec import Engine
from workspace.schema import Workspace
from workspace.trace_context import Tracing

Json = dict[str, Any]

# Of OpenTelemetry's variables those that hold no credentials: pods of tenants get them.
_PASSED: Final = (*ENDPOINTS, "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG")
_ADDRESS: Final = re.compile(
    r"(https?)://(?:[^/@]*@)?(?:\[[^/\]]*\]|[^/:]*)(?::([0-9]{1,5}))?(?:/|$)"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DNS: Final = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """How the cluster is traced; not at all by default.

    `env`: variables of activators and builds, which name the collector. `servers`: the collector's address for vLLM
    servers whose Workspace names none; None leaves those untraced. `namespaces`: labels of the collector's namespace,
    to which traced pods may send; none are let out without.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    servers: str | None = None
    namespaces: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, environ: Mapping[str, str], *, servers: str | None = None, namespaces: Mapping[str, str] | None = None
    ) -> TraceSettings:  # fmt: skip
        """Those of a controller with these variables: where it sends its own spans, others send theirs."""
        env = {name: environ[name] for name in _PASSED if environ.get(name)} if is_on(environ) else {}  # fmt: skip
        # An address with a password is the controller's alone.
        open_ones = {name: value for name, value in env.items() if "@" not in value}
        return cls(open_ones, servers, namespaces or {})

    @property
    def is_on(self) -> bool:
        """Whether versions of Workspaces have traces."""
        return bool(self.env or self.servers)

    @property
    def endpoints(self) -> list[str]:
        """The collector's addresses for our own programs."""
        return [self.env[name] for name in ENDPOINTS if name in self.env]

    def egress(self, endpoints: Iterable[str]) -> list[Json]:
        """The rules by which a pod reaches the collector at these addresses: its port, in its namespace, and DNS."""
        ports = sorted({port for port in map(_port, endpoints) if port})
        if not ports or not self.namespaces:
            return []
        collector = {"namespaceSelector": {"matchLabels": dict(self.namespaces)}}
        return [
            {"to": [collector], "ports": [{"port": port, "protocol": "TCP"} for port in ports]},
            # To any name server: which of them its pods ask is the cluster's affair.
            {"ports": [dict(each) for each in _DNS]},
        ]


def _port(endpoint: str) -> int | None:
    found = _ADDRESS.match(endpoint)
    if found is None:
        return None
    scheme, port = found.groups()
    return int(port) if port else _DEFAULT_PORTS[scheme]


def with_tracing(workspace: Workspace, endpoint: str | None) -> Workspace:
    """The Workspace with a vLLM server's spans sent to `endpoint`, unless it says itself where to."""
    runtime = workspace.spec.runtime
    if endpoint is None or runtime.tracing is not None or runtime.engine is not Engine.VLLM:
        return workspace
    traced = runtime.model_copy(update={"tracing": Tracing(endpoint=endpoint)})
    spec = workspace.spec.model_copy(update={"runtime": traced})
    return workspace.model_copy(update={"spec": spec})

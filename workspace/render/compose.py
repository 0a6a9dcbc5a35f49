"""Renders a Workspace as a compose file: an agent with its cache, pulls into it, then the server.

The server mounts the cache volume read-only and serves the model key's directory. Works with Docker Compose and
podman-compose. Registry logins come from the host's docker configuration, which is mounted.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

from cache_agent.api.kube_objects import parse_quantity
from workspace.render import drain, names
from workspace.render.release import Release, server_port
from workspace.render.routing import SystemSettings
from workspace.render.standalone import memory_limit
from workspace.runtime_spec import EnvVar
from workspace.schema import Vendor, Workspace

Json = dict[str, Any]

ROOT: Final = PurePosixPath("/var/lib/weightyard")
_AGENT_PORT: Final = 8099
# With the page cache of the files that it writes, which the kernel reclaims.
_AGENT_MEMORY: Final = 2 << 30
_VOLUME: Final = "weightyard"
_AMD_DEVICES: Final = ["/dev/kfd", "/dev/dri"]


def render_compose(workspace: Workspace, release: Release, environment: SystemSettings) -> Json:
    """The compose document as plain data."""
    pulls = {"model": _pull(environment, release.model, release.plan.variant)} | {
        f"adapter-{name}": _pull(environment, adapter.image, None)
        for name, adapter in sorted(release.adapters.items())
    }
    return {
        "name": workspace.name,
        "services": {
            "agent": _agent(environment),
            **pulls,
            names.SERVER: _server(workspace, release, list(pulls)),
        },
        "volumes": {_VOLUME: {}},
    }


def _agent(environment: SystemSettings) -> Json:
    ready = f"http://127.0.0.1:{_AGENT_PORT}/readyz"
    check = f"import urllib.request; urllib.request.urlopen({ready!r}, timeout=20)"
    return {
        "image": environment.agent_image,
        "entrypoint": ["weightyard"],
        "command": ["agent", "--root", str(ROOT), "--port", str(_AGENT_PORT)],
        "volumes": _cache_volumes(),
        "environment": {"DOCKER_CONFIG": "/docker"},
        "mem_limit": _AGENT_MEMORY,
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", check],
            "interval": "5s",
            "timeout": "30s",
            "retries": 12,
            "start_period": "600s",
        },
    }


def _pull(environment: SystemSettings, image: str, variant: str | None) -> Json:
    """A service that exits 0 once the agent has the complete, verified model in its cache."""
    chosen = ["--variant", variant] if variant else []
    return {
        "image": environment.agent_image,
        "entrypoint": ["weightyard"],
        "command": ["pull", image, *chosen, "--root", str(ROOT)],
        "volumes": _cache_volumes(),
        "environment": {"DOCKER_CONFIG": "/docker"},
        "mem_limit": _AGENT_MEMORY,
        # One that has succeeded stays ended, which is the condition that the server waits for.
        "restart": "on-failure",
        "depends_on": {"agent": {"condition": "service_healthy"}},
    }


def _cache_volumes() -> list[str]:
    return [f"{_VOLUME}:{ROOT}", "${DOCKER_CONFIG:-~/.docker}:/docker:ro"]


def _server(workspace: Workspace, release: Release, pulls: list[str]) -> Json:
    plan, port = release.plan, server_port(workspace)
    health = f"http://127.0.0.1:{port}{plan.probes.path}"
    check = f"import urllib.request; urllib.request.urlopen({health!r}, timeout=20)"
    # It runs inside the container: images of Python engines are sure to have Python, llama.cpp's has curl.
    probe = (
        ["CMD", "python3", "-c", check] if plan.template.module else ["CMD", "curl", "-fsS", health]
    )
    return {
        "image": release.runtime_image,
        "entrypoint": list(plan.template.command),
        "command": [_escaped(word) for word in plan.args],
        "environment": {each.name: _value(each) for each in plan.env},
        "volumes": [f"{_VOLUME}:{ROOT}:ro"],
        # Loopback only: engines don't authenticate clients.
        "ports": [f"127.0.0.1:{port}:{port}"],
        "restart": "unless-stopped",
        "mem_limit": parse_quantity(memory_limit(workspace, release)),
        # Docker's default of 64 MiB is too small for what workers of a server exchange.
        "shm_size": f"{max(1, plan.gpus)}gb",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{drain.grace_seconds(workspace.spec.runtime.drain_seconds)}s",
        # Started only after every pull has succeeded: an engine reads its directory once, at start.
        "depends_on": {each: {"condition": "service_completed_successfully"} for each in pulls},
        "healthcheck": {
            "test": probe,
            "interval": f"{plan.probes.period_seconds}s",
            "timeout": "30s",
            "retries": 3,
            "start_period": f"{plan.probes.startup_seconds}s",
        },
        **_devices(workspace, release),
    }


def _devices(workspace: Workspace, release: Release) -> Json:
    """The GPUs: a device reservation for NVIDIA, device files for other vendors."""
    count, vendor = release.plan.gpus, workspace.spec.resources.vendor
    if not count:
        return {}
    if vendor is Vendor.NVIDIA:
        device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
        return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
    if vendor is Vendor.AMD:
        # What ROCm's containers need: the compute and render devices, and the group that may open them.
        return {"devices": [f"{path}:{path}" for path in _AMD_DEVICES], "group_add": ["video"]}
    return {
        "devices": ["/dev/dri:/dev/dri"]
        if vendor is Vendor.INTEL
        else ["/dev/neuron0:/dev/neuron0"]
    }


def _value(each: EnvVar) -> str:
    """A variable's value. Secrets are read from the environment of the compose command and are required."""
    if each.secret is not None:
        return f"${{{each.name}:?set it: {each.secret.name}/{each.secret.key}}}"
    return _escaped(each.value or "")


def _escaped(text: str) -> str:
    """Escapes `$`, which compose reads as the start of a variable."""
    return text.replace("$", "$$")

"""`weightyard agent` as a process of its own, started and killed as a test or a benchmark likes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.cache_agent.nodes import UNDISTURBED
from tests.servers.process import ServerProcess, child_environment

LOOPBACK = '["127.0.0.1:*", "*.0.0.1:*"]'


def csi_settings(kubelet: Path, mounter: Path) -> dict[str, str]:
    """Settings for the CSI driver, and for a mirror on a free port beside it."""
    csi = {"kubelet": str(kubelet), "mounter": str(mounter)}
    return {"WEIGHTYARD_SERVERS__CSI": json.dumps(csi), "WEIGHTYARD_SERVERS__MIRROR": "127.0.0.1:0"}


class AgentProcess:
    """An agent over the store at `root`; `settings` are its variables."""

    def __init__(self, root: Path, **settings: str) -> None:
        self._root = root
        self._settings = {"WEIGHTYARD_SERVERS__REGISTRIES": LOOPBACK, **UNDISTURBED, **settings}
        self._process: ServerProcess | None = None
        self.servers: dict[str, str] = {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **settings: str) -> None:
        command = [
            sys.executable,
            "-m",
            "weightyard.cli",
            "agent",
            "--json",
            "--root",
            str(self._root),
        ]
        environment = child_environment(self._root.parent, **self._settings, **settings)
        log = self._root.parent / "agent.log"
        self._process = process = ServerProcess(command, log=log, environment=environment)
        process.wait_for(lambda: '"ready"' in process.log_text(), what="ready")
        lines = [line for line in process.log_text().splitlines() if '"ready"' in line]
        self.servers = json.loads(lines[-1])["servers"]

    def kill(self) -> None:
        """As a power cut or the kernel's memory killer would."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

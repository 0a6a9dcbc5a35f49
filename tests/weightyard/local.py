"""A user at a terminal: runs the real `weightyard` command in processes of its own, on a root of the test's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_agent.daemon.store_setup import open_roots
from cache_agent.store.store import is_store
from tests.servers.process import child_environment, wait_until
from weightyard.up.state import WorkspaceDirectory, condition

FAKE_ENGINE = Path(__file__).parent / "fake_engine"


@dataclass
class Terminal:
    """Runs commands in `directory`. `fake` tells the stand-in for vLLM how to behave; None runs the real one."""

    directory: Path
    fake: str | None = ""
    running: list[subprocess.Popen[str]] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)  # environment beside the usual

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def gate(self) -> Path:
        return self.directory / "gate"

    def environment(self) -> dict[str, str]:
        extra = {"WEIGHTYARD_ROOT": str(self.root), **self.extra}
        if self.fake is not None:
            extra |= {
                "FAKE_ENGINE": self.fake,
                "FAKE_ENGINE_GATE": str(self.gate),
                "PYTHONPATH": str(FAKE_ENGINE),
            }
        return child_environment(self.directory, **extra)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            [sys.executable, "-m", "weightyard.cli", *args],
            cwd=self.directory, env=self.environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def ok(self, *args: str) -> str:
        """Run to a good end; its stdout."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start and leave running; `close` ends it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "weightyard.cli", *args],
            cwd=self.directory, env=self.environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.running.append(process)
        return process

    def models(self) -> list[dict[str, Any]]:
        """The cached models; none where nothing has created a store yet."""
        if not is_store(self.root):
            return []
        found: list[dict[str, Any]] = json.loads(self.ok("ls", "--json"))
        return found

    def ps(self, *args: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ok("ps", "--json", *args))
        return found

    def state(self, name: str) -> str:
        """What `ps --all` calls a workspace's state; `absent` when it isn't listed."""
        states = {each["name"]: each["state"] for each in self.ps("--all")}
        return str(states.get(name, "absent"))

    def wait_for(self, name: str, state: str) -> None:
        """Wait for a state as `ps` reads it: running the command again and again would slow what is waited for."""

        def reached() -> bool:
            found = WorkspaceDirectory(self.root, name).read()
            return found is not None and condition(found) == state

        wait_until(reached, what=f"{name} {state}")

    def document(self, name: str) -> dict[str, Any]:
        """The state file itself."""
        found: dict[str, Any] = json.loads((self.root / "up" / name / "state.json").read_text())
        return found

    def close(self) -> None:
        """Stop everything that was started here."""
        self.run("down", "--all", "--timeout", "5")
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def empty_store(root: Path) -> None:
    """Create a store without any model."""
    open_roots(root).close()


def workspace(directory: Path, name: str, image: str, **spec: Any) -> Path:
    """Write a Workspace for a CPU server; returns the file."""
    document = {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "spec": {"model": {"image": image}, "resources": {"gpus": 0}, **spec},
    }
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps(document))
    return path


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not alive(pid)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)

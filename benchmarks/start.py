"""Cold start: an agent's process until /readyz returns 200, beside docker-registry until /v2/ does.

Both start in alternation, each on an empty store, and are polled. `helm template` with the chart's defaults is timed
too. Fails when the agent's median is 2 s or more, or helm's 1 s.

    .venv/bin/python -m benchmarks.start --rounds 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.chart.charting import CHART, helm
from tests.servers.ports import free_port
from tests.servers.process import program

MOST_SECONDS: Final = 2.0
MOST_RENDERING: Final = 1.0
_DEADLINE: Final = 60.0


def until_ready(command: list[str], url: str) -> float:
    """Seconds from starting a process until a URL returns 200; the process is then ended. Raises TimeoutError."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while time.perf_counter() < started + _DEADLINE:
                if _answers(url):
                    return time.perf_counter() - started
        finally:
            process.terminate()
    raise TimeoutError(f"{command[0]} didn't answer within {_DEADLINE:g} s")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        time.sleep(0.005)
        return False


def agent(folder: Path) -> float:
    """Starts an agent on an empty store."""
    port = free_port()
    weightyard = str(Path(sys.executable).with_name("weightyard"))
    command = [weightyard, "agent", f"--root={folder}", f"--observe=127.0.0.1:{port}"]
    return until_ready(command, f"http://127.0.0.1:{port}/readyz")


def registry(folder: Path) -> float:
    """Starts a docker-registry on an empty directory."""
    port = free_port()
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    command = [program("docker-registry"), "serve", str(folder / "config.yml")]
    return until_ready(command, f"http://127.0.0.1:{port}/v2/")


def rendering(folder: Path) -> float:
    """Renders the chart's defaults with helm."""
    started = time.perf_counter()
    helm("template", "weightyard", str(CHART))
    return time.perf_counter() - started


MEASURED: Final[dict[str, Callable[[Path], float]]] = {
    "agent": agent, "docker-registry": registry, "helm template": rendering,
}  # fmt: skip


def main() -> int:
    """Measures, prints, and returns 1 when a bound isn't met."""
    parser = argparse.ArgumentParser(description=__doc__, prog="benchmarks.start")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(rounds):
        for name, measure in MEASURED.items():
            with tempfile.TemporaryDirectory(prefix="wy-") as folder:
                seconds[name].append(measure(Path(folder)))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(f"{name:16} {median:6.3f} s  ({min(seconds[name]):.3f} to {max(seconds[name]):.3f})")
    print(f"agent / docker-registry: {medians['agent'] / medians['docker-registry']:.1f}")
    held = medians["agent"] < MOST_SECONDS and medians["helm template"] < MOST_RENDERING
    print("bounds held" if held else "bounds missed")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

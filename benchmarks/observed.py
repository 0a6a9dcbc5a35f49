"""What being observed costs a pull: through an agent with traces, exemplars and a scraper, beside one without.

Two agents with stores of their own pull the same image in turn, first the one, then the other, in pairs whose order
alternates; the model is removed before each pull. One exports its spans, and its metrics are scraped as OpenMetrics
meanwhile: once a second, 15 times as often as a Prometheus usually does, or as often as told. Wall time and the agent's
CPU seconds of each pair are compared, and the median of the ratios is what counts: a machine that is busy for a while
slows both of a pair. Fails when a pull takes more than 3 % longer.

    .venv/bin/python -m benchmarks.observed --megabytes 1024 --pairs 15
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.pull import cpu_of
from benchmarks.push import weightyard
from cache_agent.api.wire import PullBody
from cache_agent.net.sockets import connect
from cache_agent.store.paths import StorePaths
from tests.cache_agent.daemon.test_agent import RunningAgent, agent
from tests.servers.otlp import Collector
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint

MOST_LONGER: Final = 1.03
_OPENMETRICS: Final = {"Accept": "application/openmetrics-text;version=1.0.0"}


@dataclass(frozen=True)
class Cost:
    """What one pull took: wall seconds, and the agent's CPU seconds."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s, CPU {self.cpu:.2f} s"


def pull(running: RunningAgent, image: str) -> Cost:
    """Remove the model if it is there, and pull it again."""
    for model in running.client.models():
        running.client.remove(model.key)
    pid = running.process.pid
    wall, cpu = time.perf_counter(), cpu_of(pid)
    for _ in running.client.pull(PullBody(image=image)):
        pass
    return Cost(time.perf_counter() - wall, cpu_of(pid) - cpu)


@contextmanager
def scraping(running: RunningAgent, scrapes: float) -> Iterator[None]:
    """Read the agent's metrics so many times a second. Raises RuntimeError where they aren't OpenMetrics."""
    stop = threading.Event()
    kinds: set[str] = set()

    def scrape() -> None:
        while not stop.wait(1 / scrapes):
            connection = http.client.HTTPConnection("localhost")
            connection.sock = connect(StorePaths(running.root).socket, None)
            connection.request("GET", "/metrics", headers=_OPENMETRICS)
            answer = connection.getresponse()
            answer.read()
            kinds.add((answer.getheader("Content-Type") or "").partition(";")[0])
            connection.close()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if kinds - {"application/openmetrics-text"}:
        raise RuntimeError(f"the agent's metrics are {kinds}")


def measure(
    directory: Path, *, megabytes: int, pairs: int, scrapes: float
) -> list[tuple[Cost, Cost]]:
    """Pairs of the costs without and with being observed."""
    source = synthetic_checkpoint(directory / "source", total_bytes=megabytes * 1_000_000)
    found = []
    with ExitStack() as stack:
        registry = stack.enter_context(DockerRegistry())
        image = f"{registry.host}/bench/observed:v1"
        subprocess.run(weightyard("build", str(source), "--to", image), check=True)
        collector = stack.enter_context(Collector())
        off = stack.enter_context(agent(directory / "off", environment={}))
        on = stack.enter_context(agent(directory / "on", environment=collector.environment))
        for running in (off, on):  # the first reads the registry's files from the disk
            pull(running, image)
        for number in range(pairs):
            first = pull(off, image) if number % 2 else None
            with scraping(on, scrapes):
                after = pull(on, image)
            before = first or pull(off, image)
            found.append((before, after))
            print(f"off {before}, on {after}", flush=True)
    if not any(span.name == "pull" for span in collector.spans):
        raise RuntimeError("nothing was traced")
    return found


def main() -> int:
    """Measure and compare; 1 when the target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--scrapes", type=float, default=1, help="scrapes a second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wy-") as directory:
        found = measure(
            Path(directory), megabytes=given.megabytes, pairs=given.pairs, scrapes=given.scrapes
        )
    wall = statistics.median(after.wall / before.wall for before, after in found)
    cpu = statistics.median(after.cpu / before.cpu for before, after in found if before.cpu)
    print(f"median of {len(found)} pairs: wall x {wall:.3f}, CPU x {cpu:.3f}")
    return 0 if wall <= MOST_LONGER else 1


if __name__ == "__main__":
    sys.exit(main())

"""How a server in a pod finishes its running requests before it is told to stop.

Kubernetes takes a pod out of its Services and calls preStop at the same moment, so the hook first waits until no new
request can arrive, then until none runs. vLLM aborts what runs on SIGTERM unless told otherwise by a flag
that older images refuse; asking its metrics works with every version.
"""

from __future__ import annotations

from typing import Final

from workspace.schema import Engine

SETTLE_SECONDS: Final = 5  # until every node's proxy knows that the endpoint is gone
STOP_SECONDS: Final = 20  # from SIGTERM to the end of an idle server

_METRICS: Final = {
    Engine.VLLM: ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    Engine.SGLANG: ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
}

# Counts every line of the metrics named; a server that doesn't answer has nothing left to finish.
_SCRIPT: Final = """\
import time, urllib.request
end = time.monotonic() + {seconds}
time.sleep({settle})
while time.monotonic() < end:
    try:
        text = urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        break
    lines = [line for line in text.splitlines() if line.startswith({metrics!r})]
    if not sum(float(line.split()[-1]) for line in lines):
        break
    time.sleep(0.5)
"""


def pre_stop(engine: Engine, *, port: int, seconds: int) -> list[str]:
    """The command of the preStop hook; ends within `seconds` and a settling time."""
    metrics = _METRICS.get(engine)
    if metrics is None:
        return ["/bin/sh", "-c", f"sleep {SETTLE_SECONDS + seconds}"]
    script = _SCRIPT.format(
        seconds=SETTLE_SECONDS + seconds, settle=SETTLE_SECONDS, port=port, metrics=metrics
    )
    return ["python3", "-c", script]


def grace_seconds(seconds: int) -> int:
    """terminationGracePeriodSeconds that leaves room for the hook and for the stop itself."""
    return SETTLE_SECONDS + seconds + STOP_SECONDS

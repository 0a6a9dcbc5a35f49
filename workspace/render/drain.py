"""The preStop hook that lets a server finish its running requests before SIGTERM.

Kubernetes removes a pod from its Services and calls preStop at the same moment. The hook therefore waits first until no
new request can arrive, then until none is running. vLLM aborts running requests on SIGTERM unless a flag says
otherwise, which older images reject; reading its metrics works with every version.
"""

from __future__ import annotations

from typing import Final

from workspace.engines import QUEUE_METRICS
from workspace.runtime_spec import Engine

SETTLE_SECONDS: Final = 5  # until every node's proxy has removed the endpoint
STOP_SECONDS: Final = 20  # from SIGTERM to the exit of an idle server

# Sums all lines of the given metrics. A server that doesn't respond has nothing left to finish.
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
    """The command of the preStop hook. It ends within `seconds` plus the settle time."""
    metrics = QUEUE_METRICS.get(engine)
    if metrics is None:
        # No known metric of running requests for these engines: wait the whole time.
        return ["/bin/sh", "-c", f"sleep {SETTLE_SECONDS + seconds}"]
    script = _SCRIPT.format(
        seconds=SETTLE_SECONDS + seconds, settle=SETTLE_SECONDS, port=port, metrics=metrics
    )
    return ["python3", "-c", script]


# A name may fail to resolve once, while others are asked for at the same time.
_LEADER_SCRIPT: Final = """\
import os, socket, time
end = time.monotonic() + {seconds}
missed = 0
while missed < 3 and time.monotonic() < end:
    try:
        socket.create_connection((os.environ["LWS_LEADER_ADDRESS"], {port}), timeout=5).close()
        missed = 0
    except OSError:
        missed += 1
    time.sleep(1)
"""


def until_leader_ends(*, port: int, seconds: int) -> list[str]:
    """A worker's preStop hook: its leader, which stops at the same time, needs it for the requests that run."""
    script = _LEADER_SCRIPT.format(seconds=SETTLE_SECONDS + seconds, port=port)
    return ["python3", "-c", script]


def grace_seconds(seconds: int) -> int:
    """terminationGracePeriodSeconds: long enough for the hook and for the exit."""
    return SETTLE_SECONDS + seconds + STOP_SECONDS

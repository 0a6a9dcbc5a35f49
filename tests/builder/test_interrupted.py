"""Builds that end in the middle of writing: killed, or by Ctrl-C. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder.digest_cache import SETTLED_SECONDS
from modelimage.layout import Layout
from tests.builder.building import REPOSITORY, weightyard
from tests.servers.process import wait_until
from tests.synthetic import synthetic_checkpoint

pytestmark = pytest.mark.slow
BUNDLES = 2  # layers that come before the weights
# One layer after the other, whatever cores there are, and slowly, so that each is seen under way.
PROGRAM = """
import os, sys, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import weightyard.cli
from modelimage.layout import BlobIngest

write = BlobIngest.write

def slowly(ingest, data):
    time.sleep(0.05)
    write(ingest, data)

BlobIngest.write = slowly
sys.exit(weightyard.cli.main())
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that writing it takes a while, old enough that its digests are remembered."""
    source = tmp_path_factory.mktemp("interrupted") / "source"
    synthetic_checkpoint(source, total_bytes=400_000_000, shard_bytes=100_000_000)
    newest = max(path.stat().st_ctime for path in source.iterdir())
    while time.time() < newest + SETTLED_SECONDS:
        time.sleep(0.05)
    return source


def start(source: Path, to: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, "build", str(source), "--to", to],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_writes(layout: Path, home: Path, process: subprocess.Popen[str]) -> None:
    """Until a weight layer is whole and remembered, and the next has begun."""
    blobs, digests = layout / "blobs" / "sha256", home / ".cache" / "weightyard" / "digests"

    def writes() -> bool:
        assert process.poll() is None, "it ended before it could be stopped"
        if len(list(digests.glob("*.json"))) <= BUNDLES:
            return False
        begun = [each for each in os.scandir(blobs) if each.name.startswith(".pending-")]
        return any(_size(each) > 1_000_000 for each in begun)

    wait_until(writes, what="second layer of weights")


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_build_that_is_stopped_shows_nothing_and_goes_on(
    checkpoint: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    layout, to = tmp_path / "out", f"oci:{tmp_path}/out:v1"
    with start(checkpoint, to, tmp_path) as process:
        assert process.stderr is not None
        wait_until_it_writes(layout, tmp_path, process)
        process.send_signal(sent)
        said = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in said
    assert Layout(layout).tags() == []
    if sent == signal.SIGINT:
        assert not list(layout.rglob(".pending-*"))
    again = weightyard(
        "build", checkpoint, "--to", to, "--json", environment={"HOME": str(tmp_path)}
    )
    assert again.code == 0, again.err
    assert again.json["held"] > 50_000_000
    assert not list(layout.rglob(".pending-*"))
    assert weightyard("verify", to, "-q").code == 0

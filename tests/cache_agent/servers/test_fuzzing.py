"""A bounded run of the fuzzer, the same inputs every time; and that it would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNS = 40_000
BROKEN = """
import sys, atheris
from tests.cache_agent.servers import fuzzing
def breaks(data):
    assert not data.ConsumeUnicodeNoSurrogates(200).startswith("a")
fuzzing.GRAMMARS = (breaks,)
atheris.Setup(sys.argv, fuzzing.one)
atheris.Fuzz()
"""


def fuzz(found: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer; what it finds it writes into a directory."""
    # Without libFuzzer's limit of memory: what it reads starts at the peak of the process that started it.
    limits = ["-max_len=400", "-rss_limit_mb=0", "-malloc_limit_mb=512"]
    options = [f"-runs={RUNS}", "-seed=1", *limits, f"-artifact_prefix={found}/"]
    return subprocess.run(
        [sys.executable, *arguments, *options], cwd=Path(__file__).parents[3],
        check=False, capture_output=True, text=True, errors="replace",
    )  # fmt: skip


def test_no_text_of_strangers_breaks_a_parser(tmp_path: Path) -> None:
    ended = fuzz(tmp_path, "-m", "tests.cache_agent.servers.fuzzing")
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert f"Done {RUNS} runs" in ended.stderr


def test_a_broken_law_is_found(tmp_path: Path) -> None:
    ended = fuzz(tmp_path, "-c", BROKEN)
    assert ended.returncode != 0
    assert "AssertionError" in ended.stdout + ended.stderr

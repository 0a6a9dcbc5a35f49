"""Commands import what they use: their time at the start is that of their modules, and no machine's clock shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.process import child_environment
from tests.synthetic import synthetic_checkpoint

PROGRAM = """
import contextlib, io, json, sys
from weightyard import cli
with contextlib.redirect_stdout(io.StringIO()):
    code = cli.main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""
# What costs a tenth of a second or more, or isn't installed everywhere.
SERVING = ("aiohttp", "grpc", "prometheus_client", "structlog")
CLIENTS = ("urllib3", "requests", "httpx", "boto3", "huggingface_hub", "cryptography")
NUMBERS = ("numpy", "numba", "torch", "transformers")
TERMINAL = ("rich",)
STARTED = ("cache_agent.daemon", "cache_agent.fetch")
OUR_AGENT = (
    "cache_agent.servers",
    "cache_agent.peers",
    "cache_agent.prewarm",
    "cache_agent.mounter.server",
)


def imported(tmp_path: Path, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=child_environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return list(modules)


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (("--help",), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, "pydantic", "cache_agent.store", "yaml")),
        (("ls",), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT)),
        (("lease", "ls"), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT)),
        (("ps",), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, "pydantic", "yaml")),
        (("df",), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT)),
        (("down", "--all"), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, "pydantic", "yaml")),
        (("agent", "--help"), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT, *STARTED)),
        (("up", "--help"), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT)),
        (("init", "-o", "-"), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT)),
        (("build", "--help"), (*SERVING, "boto3", "huggingface_hub", "torch", "transformers", *TERMINAL)),
        (("version",), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, "pydantic")),
    ],
    ids=lambda words: "-".join(words) if words[0] != "aiohttp" else "",
)  # fmt: skip
def test_a_command_imports_only_what_it_uses(
    tmp_path: Path, words: tuple[str, ...], without: tuple[str, ...]
) -> None:
    found = imported(tmp_path, *words)
    too_much = {
        name
        for name in found
        if any(name == each or name.startswith(f"{each}.") for each in without)
    }
    assert not too_much


def test_a_local_build_needs_no_client_of_the_hub(tmp_path: Path) -> None:
    synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=100_000)
    found = imported(tmp_path, "build", "checkpoint", "--to", "oci:out:v1")
    assert not {"huggingface_hub", "boto3", "torch", "mlflow"} & set(found)

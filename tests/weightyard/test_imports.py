"""Commands import what they use: their time at the start is that of their modules, and no machine's clock shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.process import child_environment
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import empty_store
from weightyard.options import default_root

PROGRAM = """
import contextlib, io, json, sys
from weightyard import cli
with contextlib.redirect_stdout(io.StringIO()):
    code = cli.main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""
# What costs a tenth of a second or more, or isn't installed everywhere.
SERVING = ("aiohttp", "grpc", "prometheus_client")
CLIENTS = ("urllib3", "requests", "httpx", "boto3", "huggingface_hub", "cryptography")
NUMBERS = ("numpy", "numba", "torch", "transformers")
TERMINAL = ("rich",)
# How many an agent has imported when it is ready, with all its servers but the CSI driver; 809 are.
MODULES = 850
STARTED = ("cache_agent.daemon.node_setup", "cache_agent.fetch")
OUR_AGENT = (
    "cache_agent.servers",
    "cache_agent.peers",
    "cache_agent.prewarm",
    "cache_agent.mounter.server",
)
# What reads the store alone needs neither what fetches nor what reads images, nor a parser of documents.
FETCHING = (
    *STARTED,
    "cache_agent.sources",
    "cache_agent.access",
    "cache_agent.config",
    "cache_agent.residency",
    "cache_agent.api.control_client",
    "cache_agent.api.node_cache",
    "modelimage.access",
    "modelimage.foreign",
    "modelimage.registry",
    "modelimage.layout",
    "pydantic",
    "yaml",
    "ssl",
    "http",
    "email",
    "importlib.metadata",
)
STORE_ALONE = (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, *OUR_AGENT, *FETCHING)


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
        (("ls",), STORE_ALONE),
        (("lease", "ls"), STORE_ALONE),
        (("gc",), STORE_ALONE),
        (("ps",), (*SERVING, *CLIENTS, *NUMBERS, *TERMINAL, "pydantic", "yaml")),
        (("df",), STORE_ALONE),
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
    empty_store(default_root(child_environment(tmp_path)))
    assert not too_much(imported(tmp_path, *words), without)


def too_much(found: list[str], without: tuple[str, ...]) -> set[str]:
    return {
        name
        for name in found
        if any(name == each or name.startswith(f"{each}.") for each in without)
    }


def test_what_reads_and_changes_a_full_store_alone_imports_no_more(tmp_path: Path) -> None:
    synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=100_000)
    imported(tmp_path, "build", "checkpoint", "--to", "oci:out:v1")
    imported(tmp_path, "pull", "oci:out:v1")
    for words in (
        ("ls",),
        ("ls", "oci:out:v1"),
        ("pin", "oci:out:v1"),
        ("gc",),
        ("df",),
        ("rm", "--unpin", "oci:out:v1"),
    ):
        assert not too_much(imported(tmp_path, *words), STORE_ALONE), words
    imported(tmp_path, "pull", "oci:out:v1")
    for words in (("lease", "take", "oci:out:v1", "--holder", "manual:me"), ("lease", "ls")):
        assert not too_much(imported(tmp_path, *words), STORE_ALONE), words


def test_a_local_build_needs_no_client_of_the_hub(tmp_path: Path) -> None:
    synthetic_checkpoint(tmp_path / "checkpoint", total_bytes=100_000)
    found = imported(tmp_path, "build", "checkpoint", "--to", "oci:out:v1")
    assert not {"huggingface_hub", "boto3", "torch", "mlflow"} & set(found)


AGENT = """
import json, os, signal, sys
from cache_agent.daemon import agent
from weightyard import cli
run_agent = agent.run_agent
def noted(options, access, _ready):
    def ready(_where):
        print(json.dumps(sorted(sys.modules)), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    run_agent(options, access, ready)
agent.run_agent = noted
sys.exit(cli.main(["agent", "--root=store", "--mirror=0", "--hub=0", "--observe=0"]))
"""


def test_an_agent_is_ready_without_what_only_a_pull_needs(tmp_path: Path) -> None:
    """Each module takes a millisecond or more, and pods of a node wait for its agent."""
    done = subprocess.run(
        [sys.executable, "-c", AGENT],
        env=child_environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = set(json.loads(done.stdout.splitlines()[0]))
    # The registries' client is part of what answers.
    later = {*CLIENTS, *NUMBERS, *TERMINAL, "grpc", "botocore", "opentelemetry"} - {"urllib3"}
    assert not later & found
    assert len(found) < MODULES

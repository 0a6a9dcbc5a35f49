"""The real servers as pytest fixtures, one of each per session.

Tests share them and stay apart by name: `unique_name` gives a repository, bucket or model name that no other test has.
A test that changes a server itself (its users, its storage, its death) starts one of its own from the class.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.containerd import Containerd
from tests.servers.gcs import GoogleStorageServer
from tests.servers.hub import Hub
from tests.servers.podman import Podman
from tests.servers.registry import DockerRegistry, TokenAuthRegistry
from tests.servers.s3 import S3
from weightyard.demo.smollm import smollm2_checkpoint

USERS = {"alice": "wonderland", "bob": "builder"}
# Read by huggingface_hub when it is imported: a Hub on a busy machine may take its time.
PATIENCE = {"HF_HUB_ETAG_TIMEOUT": "86400", "HF_HUB_DOWNLOAD_TIMEOUT": "86400"}


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """After the environment was scrubbed, before a test module is imported."""
    os.environ |= PATIENCE


@pytest.fixture(scope="session")
def unique_name() -> Callable[[str], str]:
    """Give names such as `team/model-7`, never the same twice."""
    numbers = itertools.count(1)
    return lambda prefix: f"{prefix}-{next(numbers)}"


@pytest.fixture(scope="session")
def registry() -> Iterator[DockerRegistry]:
    """A registry that lets everyone do everything."""
    with DockerRegistry() as server:
        yield server


@pytest.fixture(scope="session")
def basic_registry() -> Iterator[DockerRegistry]:
    """A registry with basic authorization for `USERS`."""
    with DockerRegistry(users=USERS) as server:
        yield server


@pytest.fixture(scope="session")
def token_registry() -> Iterator[TokenAuthRegistry]:
    """A registry with token authorization for `USERS`; anyone may pull from `public/`."""
    with TokenAuthRegistry(users=USERS) as server:
        yield server


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """A Hub without repositories: a test adds its own under a unique name."""
    with Hub() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 without buckets: a test makes its own under a unique name."""
    with S3() as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[GoogleStorageServer]:
    """A Google Cloud Storage without buckets: a test makes its own under a unique name."""
    with GoogleStorageServer() as server:
        yield server


@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    """A containerd of the tests' own."""
    with Containerd() as server:
        yield server


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """A podman with storage of the tests' own."""
    with Podman() as client:
        yield client


@pytest.fixture(scope="session")
def smollm2(model_cache: Path) -> Path:
    """The real SmolLM2-135M-Instruct checkpoint (269 MB, bfloat16), read-only by agreement."""
    return smollm2_checkpoint(model_cache)

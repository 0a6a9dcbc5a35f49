"""Which API server the conformance cases run against: the fake one of the tests, or with `--against` a real one.

    pytest tests/conformance --against ~/.kube/config

They make namespaces there, and install Weightyard's CRDs where they are missing; all of it goes at the end. Cases that
restart the server run where `--restart-api` names a command that does, such as `docker exec NODE pkill kube-apiserver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cache_agent.api import definitions
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.kubeconfig import from_kubeconfig
from modelimage.errors import NotFound
from tests.conformance.cases import RESTARTING, Opening
from tests.conformance.means import FakeMeans, RealMeans
from tests.conformance.subject import Subject
from tests.servers import process
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from workspace import crd

Json = dict[str, Any]
SECONDS = 120
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("conformance").addoption(
        "--against", metavar="KUBECONFIG", help="Run the conformance cases against this cluster's API server."
    )  # fmt: skip
    parser.getgroup("conformance").addoption(
        "--restart-api", metavar="COMMAND", help="Restarts that server, for the cases that need it."
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case of a module is a test, where it can be run."""
    option = metafunc.config.getoption
    stays = option("--against", default=None) and not option("--restart-api", default=None)
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES
        found = [each for each in cases if not (stays and each.__name__ in RESTARTING)]
        metafunc.parametrize("case", found, ids=[each.__name__ for each in found])


@pytest.fixture
def opening(pytestconfig: pytest.Config) -> Opening:
    """Opens the server that is asked for, in a namespace of its own."""
    kubeconfig = pytestconfig.getoption("--against", default=None)
    restart = pytestconfig.getoption("--restart-api", default=None)
    return (lambda: real(Path(kubeconfig), restart)) if kubeconfig else fake


@contextlib.asynccontextmanager
async def fake() -> AsyncIterator[Subject]:
    http = HttpApi(FakeApi())
    http.watches.second = 0.01
    async with http, http.client() as client:
        yield Subject(client, "conformance", FakeMeans(http))


@contextlib.asynccontextmanager
async def real(kubeconfig: Path, restart: str | None) -> AsyncIterator[Subject]:
    connection = from_kubeconfig([kubeconfig], programs=True)
    namespace = f"conformance-{uuid.uuid4().hex[:8]}"
    async with KubeClient(connection, role="tests") as client:
        made = await install_definitions(client)
        named = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await client.create("/api/v1/namespaces", named)
        try:
            yield Subject(client, namespace, RealMeans(kubeconfig, client, restart))
        finally:
            await client.call("DELETE", f"/api/v1/namespaces/{namespace}")
            await gone(client, f"/api/v1/namespaces/{namespace}")
            for name in made:
                await client.call("DELETE", f"{DEFINITIONS}/{name}")
                await gone(client, f"{DEFINITIONS}/{name}")


async def install_definitions(client: KubeClient) -> list[str]:
    """Creates the definitions that are missing, waits until they are served, and returns their names."""
    made = []
    for document in (crd.definition(), definitions.cached_model_definition()):
        name = document["metadata"]["name"]
        try:
            await client.get(f"{DEFINITIONS}/{name}")
        except NotFound:
            await client.create(DEFINITIONS, document)
            made.append(name)
    for plural in ("workspaces", "cachedmodels"):
        path = f"/apis/weightyard.dev/v1alpha1/{plural}"
        async with asyncio.timeout(SECONDS):
            while not await is_there(client, path):  # noqa: ASYNC110 - nobody here can tell
                await asyncio.sleep(process.POLL_SECONDS)
    return made


async def is_there(client: KubeClient, path: str) -> bool:
    try:
        await client.get(path)
    except NotFound:
        return False
    return True


async def gone(client: KubeClient, path: str) -> None:
    async with asyncio.timeout(SECONDS):
        while await is_there(client, path):  # noqa: ASYNC110 - nobody here can tell
            await asyncio.sleep(process.POLL_SECONDS)

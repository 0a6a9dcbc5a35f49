"""Which cluster the end-to-end suite runs on. Without `--kubeconfig` the suite isn't collected at all.

    pytest tests/e2e --kubeconfig ~/.kube/config --model registry.example/m:v1 --next-model registry.example/m:v2

It installs the chart, and takes everything away again at its end. tests/README.md describes the other options.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.journey import Settings
from tests.e2e.readers import Reader, reading
from tests.e2e.release import Release
from weightyard.cli import main

CHART = str(Path(__file__).parents[2] / "charts" / "weightyard")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("e2e")
    group.addoption("--kubeconfig", help="The cluster to run on.")
    group.addoption("--model", help="A small model image that needs no login.")
    group.addoption("--next-model", help="Another version of it.")
    group.addoption("--private-model", help="A small model image that needs a login.")
    group.addoption("--private-login", help="USER:PASSWORD for it.")
    group.addoption("--namespace", default="weightyard-e2e", help="Where Workspaces are made.")
    group.addoption("--release-namespace", default="weightyard", help="Where the chart goes.")
    group.addoption("--helm", default="helm", help="The helm program, version 3 or 4.")
    group.addoption("--values", action="append", default=[], help="Values beside cpu-values.yaml.")
    group.addoption("--previous-chart", help="The release to upgrade from; else this chart.")
    group.addoption(
        "--installed", action="store_true", help="Use the chart that is there, and leave it."
    )
    group.addoption("--runtime-image", help="The server's image, instead of the default one.")
    group.addoption("--gpus", type=int, help="GPUs of a replica; 0 for a CPU server.")
    group.addoption("--gpu", help="The GPU's name, where nodes don't tell it.")
    group.addoption("--restart-kubelet", help="A command that restarts {node}'s kubelet.")
    group.addoption("--minutes", type=float, default=20, help="How long a step may take.")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Nothing here is a test of a machine; `None` lets others decide."""
    if collection_path.name.startswith("test_") and not config.getoption(
        "--kubeconfig", default=None
    ):
        return True
    return None


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    option = pytestconfig.getoption
    if not option("--model") or not option("--next-model"):
        raise pytest.UsageError("--model and --next-model name two versions of a small model image")
    return Settings(
        kubeconfig=option("--kubeconfig"),
        namespace=option("--namespace"),
        model=option("--model"),
        next_model=option("--next-model"),
        runtime_image=option("--runtime-image"),
        gpus=option("--gpus"),
        gpu=option("--gpu"),
        minutes=option("--minutes"),
    )


@pytest.fixture(scope="session", autouse=True)
def release(pytestconfig: pytest.Config, settings: Settings, cluster: Cluster) -> Iterator[Release]:
    """The chart, upgraded under a pod that reads a model; at the end it is uninstalled, and nothing may be left."""
    option = pytestconfig.getoption
    release = Release(
        cluster.within(option("--release-namespace")),
        option("--kubeconfig"),
        chart=CHART,
        previous=option("--previous-chart") or CHART,
        values=tuple(option("--values")),
        helm=option("--helm"),
    )
    if option("--installed"):
        release.wait()
        yield release
        return
    try:
        release.install()
        with reading(release, cluster, settings.model) as reader:
            reader.wait()
            release.upgrade()
            reader.read()
        yield release
        with reading(release, cluster, settings.model):
            said = release.refuses_to_go()
        assert "failed" in said.lower(), said
    finally:
        cluster.kubectl("delete", "workspaces,pods", "--all", "-n", cluster.namespace)
        release.uninstall()
        command = ["cleanup", "--all", "--crds", "-n", release.cluster.namespace]
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("KUBECONFIG", release.kubeconfig)
            assert main(command) == 0
        left = release.leftovers()
        cluster.kubectl("delete", "namespace", release.cluster.namespace)
    assert left == []


@pytest.fixture(scope="session")
def cluster(settings: Settings) -> Iterator[Cluster]:
    """The cluster, in a namespace that is made for the suite."""
    cluster = Cluster(settings.kubeconfig, settings.namespace, minutes=settings.minutes)
    cluster.kubectl("create", "namespace", settings.namespace)
    yield cluster
    cluster.kubectl("delete", "namespace", settings.namespace)


@pytest.fixture
def reader(release: Release, cluster: Cluster, settings: Settings) -> Iterator[Reader]:
    """A restricted pod that has the model mounted."""
    with reading(release, cluster, settings.model) as reader:
        reader.wait()
        yield reader

"""Which cluster the end-to-end suite runs on. Without `--kubeconfig` the suite isn't collected at all.

    pytest tests/e2e --kubeconfig ~/.kube/config --model registry.example/m:v1 --next-model registry.example/m:v2

On a cluster without GPUs: `--gpus 0 --runtime-image IMAGE`, an image with vLLM for CPUs.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("e2e")
    group.addoption("--kubeconfig", help="The cluster to run on, which has Weightyard installed.")
    group.addoption("--model", help="A small model image.")
    group.addoption("--next-model", help="Another version of it.")
    group.addoption(
        "--namespace", default="weightyard-e2e", help="Where Workspaces are made; it must exist."
    )
    group.addoption("--runtime-image", help="The server's image, instead of the default one.")
    group.addoption("--gpus", type=int, help="GPUs of a replica; 0 for a CPU server.")
    group.addoption("--gpu", help="The GPU's name, where nodes don't tell it.")
    group.addoption("--minutes", type=float, default=20, help="How long a step may take.")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Nothing here is a test of a machine; `None` lets others decide."""
    if collection_path.name.startswith("test_") and not config.getoption(
        "--kubeconfig", default=None
    ):
        return True
    return None

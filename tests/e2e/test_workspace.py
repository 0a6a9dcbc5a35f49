"""A Workspace's whole life in the cluster of `--kubeconfig`."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.journey import Settings, travel


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    option = request.config.getoption
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


@pytest.mark.timeout(0)
def test_a_workspace_lives_from_its_creation_to_its_end(settings: Settings) -> None:
    travel(settings, f"e2e-{uuid.uuid4().hex[:8]}")

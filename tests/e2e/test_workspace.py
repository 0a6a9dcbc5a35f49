"""A Workspace's whole life in the cluster of `--kubeconfig`."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.journey import Settings, sleeps_and_wakes, travel


@pytest.mark.timeout(0)
def test_a_workspace_lives_from_its_creation_to_its_end(settings: Settings) -> None:
    travel(settings, f"e2e-{uuid.uuid4().hex[:8]}", sleeps_and_wakes)

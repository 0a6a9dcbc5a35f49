"""A CachedModel's life in the cluster of `--kubeconfig`."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.journey import Settings
from tests.e2e.prewarming import warm


@pytest.mark.timeout(0)
def test_a_model_is_brought_to_the_nodes_that_should_have_it(
    cluster: Cluster, settings: Settings
) -> None:
    warm(cluster, f"e2e-{uuid.uuid4().hex[:8]}", settings.model, {})

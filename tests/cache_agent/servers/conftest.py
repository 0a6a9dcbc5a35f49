"""A node with kubelet, mounter and agent for tests of the CSI driver, ended by the checker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cache_agent.mounter.mounters import NamespacedMounter
from tests.cache_agent.nodes import findings
from tests.cache_agent.servers.kubelet import Kubelet
from tests.cache_agent.servers.machine import Machine, start_agent


@pytest.fixture
def machine(tmp_root: Path) -> Iterator[Machine]:
    root = tmp_root / "store"
    with ExitStack() as stack:
        kubelet = stack.enter_context(Kubelet(tmp_root / "kubelet"))
        mounter = stack.enter_context(NamespacedMounter(root, kubelet.directory))
        made = Machine(root, kubelet, mounter, stack, start_agent(root, kubelet, mounter))
        yield made
        made.agent.__exit__()
    assert findings(root) == []

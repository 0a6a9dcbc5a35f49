"""Calls whose caller gave up, and calls that come together: what is left is what was asked for last."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from cache_agent.fetch.pull import Pull
from cache_agent.fetch.puller import Puller
from cache_agent.fetch.values import PullRequest
from tests.cache_agent.servers.machine import Machine, refused
from tests.cache_agent.servers.published import publish_model
from tests.servers.process import wait_until
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers


@pytest.fixture
def repository(registry: DockerRegistry, unique_name: Callable[[str], str]) -> str:
    return f"{registry.host}/{unique_name('csi')}"


@contextmanager
def standing_still(machine: Machine) -> Iterator[None]:
    """The mounter does nothing while inside."""
    pid = int(machine.mounter.proc.name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def give_up(machine: Machine, image: str) -> None:
    """Publish for pod-1, and end the call when only the mounter is left to wait for."""
    with standing_still(machine), ThreadPoolExecutor(1) as pool:
        call = pool.submit(refused, lambda: machine.kubelet.publish("pod-1", image))
        wait_until(lambda: machine.leases() == ["pod:pod-1"], what="lease")
        machine.kubelet.channels[-1].close()
        assert call.result().code() is grpc.StatusCode.CANCELLED


def test_a_publish_that_was_given_up_is_undone_by_the_unpublish_that_follows(
    machine: Machine, repository: str
) -> None:
    image = f"{repository}:v1"
    publish_model(image, seed=81)
    machine.agent.pull(image)
    give_up(machine, image)
    assert machine.leases() == ["pod:pod-1"], "it may be mounted yet"
    machine.kubelet.unpublish("pod-1")
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_a_publish_that_was_given_up_is_finished_by_the_next(
    machine: Machine, repository: str
) -> None:
    image = f"{repository}:v1"
    model = publish_model(image, seed=82)
    machine.agent.pull(image)
    give_up(machine, image)
    target = machine.kubelet.publish("pod-1", image)
    assert machine.files(target) == model.files
    assert (len(machine.mounter.mounts()), machine.leases()) == (1, ["pod:pod-1"])


def test_a_model_of_two_names_is_published_under_each_without_a_pull(
    machine: Machine, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in ("v1", "stable"):
        publish_model(f"{repository}:{tag}", seed=83)
        machine.agent.pull(f"{repository}:{tag}")

    def pull(puller: Puller, request: PullRequest) -> Pull:
        raise AssertionError(f"pulled {request.image}")

    monkeypatch.setattr(Puller, "start", pull)
    for pod, tag in enumerate(("v1", "stable", "v1")):
        machine.kubelet.publish(f"pod-{pod}", f"{repository}:{tag}")
    assert len(machine.mounter.mounts()) == 3

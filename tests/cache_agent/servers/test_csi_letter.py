"""What the CSI specification says of each call of a node driver: required fields, error codes, idempotence.

Written from csi.proto's comments and spec.md ("Node Service RPC"); the cases are those that csi-sanity has for a driver
without staging, and the specification's own beyond them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.cache_agent.mounter.mounters import volume
from tests.cache_agent.servers.csi_spec import message
from tests.cache_agent.servers.machine import Machine, refused
from tests.cache_agent.servers.published import publish_model
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers
Code = grpc.StatusCode
MODES = message("VolumeCapability.AccessMode").DESCRIPTOR.enum_types_by_name["Mode"].values_by_name
UNPUBLISH, STATS = "NodeUnpublishVolume", "NodeGetVolumeStats"


@pytest.fixture
def image(registry: DockerRegistry, unique_name: Callable[[str], str]) -> str:
    return f"{registry.host}/{unique_name('letter')}:v1"


def capability(access: str = "mount", mode: int | None = 1) -> Any:
    kinds = {
        "mount": {"mount": message("VolumeCapability.MountVolume")()},
        "block": {"block": message("VolumeCapability.BlockVolume")()},
        "none": {},
    }
    stated = {} if mode is None else {"access_mode": message("VolumeCapability.AccessMode")(mode=mode)}  # fmt: skip
    return message("VolumeCapability")(**kinds[access], **stated)


@pytest.mark.parametrize(
    "changed",
    [
        {"volume_id": ""},
        {"volume_id": "x" * 129},
        {"target_path": ""},
        {"volume_capability": None},
        {"volume_capability": capability("none")},
        {"volume_capability": capability("block")},
        {"volume_capability": capability(mode=None)},
        {"volume_capability": capability(mode=0)},
        {"volume_capability": capability(mode=99)},
    ],
    ids=str,
)
def test_a_publish_without_what_is_required_is_invalid(
    machine: Machine, changed: dict[str, Any]
) -> None:
    error = refused(lambda: machine.kubelet.publish("pod-1", "127.0.0.1:9/m:v1", **changed))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        (UNPUBLISH, {}, Code.INVALID_ARGUMENT),
        (UNPUBLISH, {"target_path": "TARGET"}, Code.INVALID_ARGUMENT),
        (UNPUBLISH, {"volume_id": "csi-pod-1"}, Code.INVALID_ARGUMENT),
        (STATS, {}, Code.INVALID_ARGUMENT),
        (STATS, {"volume_path": "TARGET"}, Code.INVALID_ARGUMENT),
        (STATS, {"volume_id": "csi-pod-1"}, Code.INVALID_ARGUMENT),
        (STATS, {"volume_id": "csi-pod-1", "volume_path": "some/path"}, Code.NOT_FOUND),
        (STATS, {"volume_id": "csi-pod-1", "volume_path": "/etc"}, Code.NOT_FOUND),
        (STATS, {"volume_id": "csi-pod-1", "volume_path": "OTHER"}, Code.NOT_FOUND),
        (STATS, {"volume_id": "another", "volume_path": "TARGET"}, Code.NOT_FOUND),
        (STATS, {"volume_id": "csi-pod-1", "volume_path": "TARGET"}, Code.OK),
    ],
)
def test_calls_for_a_published_volume(
    machine: Machine, image: str, method: str, fields: dict[str, str], code: Code
) -> None:
    publish_model(image, seed=61)
    target = machine.kubelet.publish("pod-1", image)
    places = {"TARGET": target, "OTHER": volume(machine.kubelet.directory, "pod-2")}
    stated = {name: places.get(value, value) for name, value in fields.items()}
    if code is Code.OK:
        machine.kubelet.call("Node", method, **stated)
    else:
        assert refused(lambda: machine.kubelet.call("Node", method, **stated)).code() is code
    assert (len(machine.mounter.mounts()), machine.leases()) == (1, ["pod:pod-1"])


@pytest.mark.parametrize(
    "method", ["NodeStageVolume", "NodeUnstageVolume", "NodeExpandVolume"]
)  # fmt: skip
def test_calls_of_other_capabilities_are_unimplemented(machine: Machine, method: str) -> None:
    assert refused(lambda: machine.kubelet.call("Node", method)).code() is Code.UNIMPLEMENTED


def test_identities_have_the_required_form(machine: Machine) -> None:
    info = machine.kubelet.call("Identity", "GetPluginInfo")
    assert 0 < len(info.name) <= 63
    assert info.vendor_version
    node = machine.kubelet.call("Node", "NodeGetInfo")
    assert 0 < len(node.node_id) <= 192
    assert node.max_volumes_per_node >= 0


def test_a_volume_is_published_again_as_it_was_or_not_at_all(machine: Machine, image: str) -> None:
    """The table of "Node Publish Volume": same target and arguments, and others."""
    publish_model(image, seed=62)
    target = machine.kubelet.publish("pod-1", image)
    assert machine.kubelet.publish("pod-1", image) == target
    # Models are read: every mode is compatible with every other.
    for mode in range(1, len(MODES)):
        machine.kubelet.publish("pod-1", image, volume_capability=capability(mode=mode))
    error = refused(lambda: machine.kubelet.publish("pod-1", image, readonly=False))
    assert error.code() is Code.ALREADY_EXISTS
    assert "readonly true" in str(error.details())
    machine.restart()
    again = refused(lambda: machine.kubelet.publish("pod-1", image, readonly=False))
    assert again.code() is Code.ALREADY_EXISTS
    assert (len(machine.mounter.mounts()), machine.leases()) == (1, ["pod:pod-1"])
    machine.kubelet.unpublish("pod-1")
    machine.kubelet.publish("pod-1", image, readonly=False)
    assert "ro" in machine.mounter.mounts()[0].options
    assert refused(lambda: machine.kubelet.publish("pod-1", image)).code() is Code.ALREADY_EXISTS
    machine.kubelet.unpublish("pod-1")
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_each_target_of_a_volume_has_its_own_lease(machine: Machine, image: str) -> None:
    model = publish_model(image, seed=63)
    targets = [volume(machine.kubelet.directory, "pod-1", name) for name in ("one", "two")]
    for target in targets:
        machine.kubelet.publish("pod-1", image, target_path=target)
    assert machine.leases() == ["pod:pod-1", "pod:pod-1"]
    machine.kubelet.unpublish("pod-1", targets[0])
    machine.kubelet.unpublish("pod-1", targets[0])
    assert machine.leases() == ["pod:pod-1"]
    assert machine.files(targets[1]) == model.files
    (mounted,) = machine.mounter.mounts()
    assert mounted.target == targets[1]
    machine.kubelet.unpublish("pod-1", targets[1])
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_a_publish_that_fails_at_one_target_leaves_the_other_its_lease(
    machine: Machine, image: str
) -> None:
    publish_model(image, seed=64)
    machine.kubelet.publish("pod-1", image)
    gone = f"{machine.kubelet.directory}/pods/pod-1/volumes/kubernetes.io~csi/gone/mount"
    refused(lambda: machine.kubelet.publish("pod-1", image, target_path=gone))
    assert (len(machine.mounter.mounts()), machine.leases()) == (1, ["pod:pod-1"])
    machine.kubelet.unpublish("pod-1")


@pytest.mark.parametrize("volume_id", ["x" * 128, "ü" * 64, "with spaces and / and %"])
def test_ids_and_names_may_be_long(machine: Machine, image: str, volume_id: str) -> None:
    publish_model(image, seed=65)
    target = volume(machine.kubelet.directory, "pod-1", "n" * 253)
    machine.kubelet.publish("pod-1", image, volume_id=volume_id, target_path=target)
    fields = {"volume_id": volume_id, "volume_path": target}
    assert len(machine.kubelet.call("Node", STATS, **fields).usage) == 2
    machine.kubelet.call("Node", UNPUBLISH, volume_id=volume_id, target_path=target)
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_an_unpublish_of_what_was_never_published_is_done(machine: Machine) -> None:
    target = volume(machine.kubelet.directory, "pod-1")
    machine.kubelet.call("Node", UNPUBLISH, volume_id="never", target_path=target)
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])

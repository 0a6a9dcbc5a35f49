"""The CSI driver as kubelet uses it: real gRPC, a real registry, a real mounter, and what the kernel has mounted."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cache_agent.api.publish_record import PublishRecord, parse_record
from cache_agent.api.shared_names import CSI_DRIVER
from cache_agent.config import SignatureSection
from cache_agent.daemon.servers import ServerOptions
from cache_agent.servers.csi.driver_options import CsiOptions
from cache_agent.servers.csi.requests import VolumeUse
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder, Lease
from modelimage.access import Access
from modelimage.errors import NoSpace, NotFound
from modelimage.registry.credentials import BasicCredential, ExplicitCredential
from tests.cache_agent.mounter.mounters import NamespacedMounter, volume
from tests.cache_agent.nodes import ROOMY, service_of
from tests.cache_agent.servers.agents import ServersInProcess
from tests.cache_agent.servers.kubelet import PREFIX, Kubelet
from tests.cache_agent.servers.machine import ALLOWED, Machine, refused
from tests.cache_agent.servers.published import publish_model
from tests.servers.registry import DockerRegistry, TokenAuthRegistry

pytestmark = pytest.mark.servers
Code = grpc.StatusCode


@pytest.fixture
def image(registry: DockerRegistry, unique_name: Callable[[str], str]) -> str:
    return f"{registry.host}/{unique_name('csi')}:v1"


def test_kubelet_finds_the_driver_and_what_it_can_do(machine: Machine) -> None:
    info = machine.kubelet.register()
    assert (info.type, info.name, list(info.supported_versions)) == (
        "CSIPlugin",
        CSI_DRIVER,
        ["1.0.0"],
    )
    assert info.endpoint == str(machine.kubelet.directory / f"plugins/{CSI_DRIVER}/csi.sock")
    assert machine.kubelet.call("Identity", "GetPluginInfo").name == CSI_DRIVER
    assert machine.kubelet.call("Identity", "Probe").ready.value
    machine.kubelet.call("Identity", "GetPluginCapabilities")
    assert machine.kubelet.call("Node", "NodeGetInfo").node_id == "node-1"
    capabilities = machine.kubelet.call("Node", "NodeGetCapabilities").capabilities
    assert [each.rpc.type for each in capabilities] == [2]


def test_a_pod_gets_a_model_that_was_not_there_and_gives_it_back(
    machine: Machine, image: str
) -> None:
    model = publish_model(image, seed=41)
    target = machine.kubelet.publish("pod-1", image)
    assert machine.files(target) == model.files
    (mounted,) = machine.mounter.mounts()
    assert mounted.options >= {"ro", "nosuid", "nodev", "noexec"}
    assert Path(mounted.root).name == model.record.key.hex
    assert machine.leases() == ["pod:pod-1"]
    usage = machine.kubelet.call(
        "Node", "NodeGetVolumeStats", volume_id="csi-pod-1", volume_path=target
    ).usage
    assert {each.unit: each.used for each in usage} == {1: model.record.size, 2: len(model.files)}
    machine.kubelet.unpublish("pod-1", target)
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])
    gone = refused(
        lambda: machine.kubelet.call(
            "Node", "NodeGetVolumeStats", volume_id="csi-pod-1", volume_path=target
        )
    )
    assert gone.code() is Code.NOT_FOUND


def test_publishing_and_unpublishing_again_change_nothing(machine: Machine, image: str) -> None:
    publish_model(image, seed=42)
    for _ in range(3):
        target = machine.kubelet.publish("pod-1", image)
    assert (len(machine.mounter.mounts()), machine.leases()) == (1, ["pod:pod-1"])
    for _ in range(3):
        machine.kubelet.unpublish("pod-1", target)
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_a_cached_model_without_the_signature_that_is_asked_for_is_shown_to_no_pod(
    machine: Machine, image: str, tmp_path: Path
) -> None:
    publish_model(image, seed=48)
    machine.kubelet.publish("pod-1", image)
    key = tmp_path / "team.pub"
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key.write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    machine.agent.node.trust.reconfigure((SignatureSection(images="127.0.0.1:*", keys=(key,)),))
    error = refused(lambda: machine.kubelet.publish("pod-2", image))
    assert error.code() is Code.PERMISSION_DENIED
    assert "only when it is signed" in str(error.details())
    assert machine.leases() == ["pod:pod-1"]


def test_fifty_pods_share_one_copy(machine: Machine, image: str) -> None:
    model = publish_model(image, seed=43)
    pods = [f"pod-{number}" for number in range(50)]
    threads = [threading.Thread(target=machine.kubelet.publish, args=(pod, image)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.mounter.mounts()) == 50
    assert sorted(machine.leases()) == sorted(f"pod:{pod}" for pod in pods)
    assert machine.agent.node.store.first.space.view().own < 2 * model.record.size


def test_a_mount_outlives_its_agent_and_the_next_one_knows_it(machine: Machine, image: str) -> None:
    model = publish_model(image, seed=44)
    target = machine.kubelet.publish("pod-1", image)
    machine.restart()
    assert machine.files(target) == model.files
    assert machine.leases() == ["pod:pod-1"]
    machine.kubelet.publish("pod-1", image)
    machine.kubelet.unpublish("pod-1", target)
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_a_lease_whose_mount_was_never_made_is_taken_over(machine: Machine, image: str) -> None:
    """An agent died between its lease and its mount."""
    model = publish_model(image, seed=45)
    machine.agent.pull(image)
    use = VolumeUse("csi-pod-1", volume(machine.kubelet.directory, "pod-1"), readonly=True)
    machine.agent.node.store.leases.take(model.record.key, Holder.parse("pod:pod-1"), use.lease)
    target = machine.kubelet.publish("pod-1", image)
    assert machine.files(target) == model.files
    assert machine.leases() == ["pod:pod-1"]


def test_a_cached_model_is_published_while_its_registry_is_away(machine: Machine) -> None:
    with DockerRegistry() as registry:
        image = f"{registry.host}/team/away:v1"
        model = publish_model(image, seed=46)
        machine.agent.pull(image)
    assert machine.files(machine.kubelet.publish("pod-1", image)) == model.files


def test_a_slow_pull_says_how_far_it_is_and_goes_on(
    machine: Machine, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish_model(image, seed=47)
    # Told after a second, with an hour for the answer to come; and half a minute's worth of bytes.
    monkeypatch.setattr("cache_agent.servers.csi.driver._MARGIN_SECONDS", 3600.0)
    machine.agent.node.engine.set_bandwidth(100_000)
    waiting = refused(lambda: machine.kubelet.publish("pod-1", image, seconds=3601))
    assert waiting.code() is Code.ABORTED
    assert "waiting for" in waiting.details()
    assert "MiB" in waiting.details()
    for subject in ("pod-1", "a", "b/a", image):
        (view,) = service_of(machine.agent.node).explain(subject)
        assert (view.state, view.total) == ("waiting", model.record.size)
        assert view.text == "being fetched"
        assert view.seconds_left
        assert list(view.sources) == [f"registry {image.rpartition(':')[0]}"]
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])
    machine.agent.node.engine.set_bandwidth(0)
    target = machine.kubelet.publish("pod-1", image)
    assert machine.files(target) == model.files
    assert [each.state for each in service_of(machine.agent.node).explain("b/a")] == ["ready"]


def test_a_pod_is_told_soon_what_it_waits_for_and_then_when_it_is_mounted(
    machine: Machine, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubelet makes an Event of the first answer; later ones may take as long as kubelet waits."""
    model = publish_model(image, seed=48)
    monkeypatch.setattr("cache_agent.servers.csi.volumes._FIRST_ANSWER", 0.0)
    machine.agent.node.engine.set_bandwidth(100_000)
    waiting = refused(lambda: machine.kubelet.publish("pod-1", image, seconds=3601))
    assert waiting.code() is Code.ABORTED
    (event,) = machine.agent.pod_events.told
    assert (event.uid, event.name, event.reason) == ("pod-1", "b/a", "PullingModel")
    assert event.message.startswith(f"{image}: waiting for ")
    machine.agent.node.engine.set_bandwidth(0)
    target = machine.kubelet.publish("pod-1", image, seconds=3601)  # waits for the rest
    assert machine.files(target) == model.files
    reasons = [each.reason for each in machine.agent.pod_events.told]
    assert reasons == ["PullingModel", "ModelMounted"]
    record = record_of(machine)
    assert record.seconds > 0
    assert [(each.tier, each.bytes) for each in record.tiers] == [("registry", model.record.size)]
    assert 0 < record.tiers[0].seconds <= record.seconds + 1


def test_a_model_that_is_cached_is_told_once_with_where_it_was(
    machine: Machine, image: str
) -> None:
    model = publish_model(image, seed=49)
    machine.agent.pull(image)
    machine.kubelet.publish("pod-1", image)
    machine.kubelet.publish("pod-1", image)  # kubelet repeats what it isn't sure of
    assert [each.reason for each in machine.agent.pod_events.told] == ["ModelMounted"]
    record = record_of(machine)
    assert {each.tier for each in record.tiers} <= {"memory", "disk"}
    assert sum(each.bytes for each in record.tiers) == model.record.size


def record_of(machine: Machine) -> PublishRecord:
    """What the agent tells of the volume that it published last, as a controller reads it."""
    told = machine.agent.pod_events.told[-1]
    assert told.record is not None
    loop = machine.agent._loop
    assert loop is not None
    made = asyncio.run_coroutine_threadsafe(told.record(), loop).result()  # type: ignore[arg-type]
    assert parse_record(made.to_annotation()) == made
    return made


def test_explain_knows_why_a_pod_was_refused_and_what_is_cached(
    machine: Machine, image: str
) -> None:
    model = publish_model(image, seed=54)
    service = service_of(machine.agent.node)
    with pytest.raises(NotFound):
        service.explain(image)
    refused(lambda: machine.kubelet.publish("pod-1", f"{image}x"))
    (view,) = service.explain("pod-1")
    assert (view.state, view.image) == ("failed", f"{image}x")
    assert "doesn't have it" in view.text
    machine.kubelet.publish("pod-2", image)
    assert "used by pod:pod-2" in service.explain(image)[0].text
    machine.restart()
    for subject in ("pod-2", "a", "b/a"):
        (view,) = service_of(machine.agent.node).explain(subject)
        assert (view.subject, view.state, view.image) == ("pod b/a", "ready", image)
    machine.kubelet.unpublish("pod-2")
    assert "not in use" in service_of(machine.agent.node).explain(str(model.record.key))[0].text


def test_a_moved_tag_is_noticed(machine: Machine, image: str) -> None:
    publish_model(image, seed=48)
    machine.kubelet.publish("pod-1", image)
    newer = publish_model(image, seed=49)
    assert machine.files(machine.kubelet.publish("pod-2", image)) == newer.files
    other = refused(lambda: machine.kubelet.publish("pod-1", image))
    assert other.code() is Code.ALREADY_EXISTS
    assert len(machine.mounter.mounts()) == 2


def context(pod: str, **attributes: str) -> dict[str, str]:
    return {f"{PREFIX}ephemeral": "true", f"{PREFIX}pod.uid": pod, **attributes}


IMAGE = "127.0.0.1:9/team/m:v1"  # which is never asked for


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"volume_context": context("pod-1")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image="oci:/etc")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image="oci:///etc")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image="oci://169.254.169.254/m:v1")}, Code.PERMISSION_DENIED),
        ({"volume_context": context("pod-1", image="docker:x")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image="../../etc")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image=IMAGE, variant="../x")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image=IMAGE, root="/etc")}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-2", image=IMAGE)}, Code.INVALID_ARGUMENT),
        ({"volume_context": {**context("pod-1", image=IMAGE), f"{PREFIX}ephemeral": "false"}}, Code.INVALID_ARGUMENT),
        ({"volume_context": context("pod-1", image="169.254.169.254/m:v1")}, Code.PERMISSION_DENIED),
        ({"volume_id": ""}, Code.INVALID_ARGUMENT),
        ({"target_path": ""}, Code.INVALID_ARGUMENT),
        ({"target_path": "/etc"}, Code.INVALID_ARGUMENT),
        ({"secrets": {"token": "x"}}, Code.INVALID_ARGUMENT),
        ({"secrets": {".dockerconfigjson": "{"}}, Code.INVALID_ARGUMENT),
        ({}, Code.UNAVAILABLE),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_code(
    machine: Machine, deserted: str, changed: dict[str, Any], code: Code
) -> None:
    error = refused(lambda: machine.kubelet.publish("pod-1", f"{deserted}/team/m:v1", **changed))
    assert error.code() is code
    assert error.details()
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])


def test_images_and_variants_that_are_not_there(machine: Machine, image: str) -> None:
    publish_model(image, seed=50)
    assert (
        refused(lambda: machine.kubelet.publish("pod-1", image, variant="int4")).code()
        is Code.NOT_FOUND
    )
    assert refused(lambda: machine.kubelet.publish("pod-1", f"{image}x")).code() is Code.NOT_FOUND


def test_a_full_disk_is_said_and_leaves_nothing_half_done(machine: Machine, image: str) -> None:
    model, store = publish_model(image, seed=59), machine.agent.node.store
    store.set_limits(SpaceLimits(Amount.parse("1MB"), Amount.parse("0")))
    error = refused(lambda: machine.kubelet.publish("pod-1", image))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "need" in error.details()
    assert (machine.mounter.mounts(), machine.leases()) == ([], [])
    store.set_limits(ROOMY)
    target = machine.kubelet.publish("pod-1", image)
    assert machine.files(target) == dict(model.files)


def test_a_lease_that_cannot_be_written_is_no_mount(
    machine: Machine, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the model is here and only the ledger has to be written."""
    publish_model(image, seed=60)
    machine.agent.pull(image)
    (store,) = machine.agent.node.store.stores

    def full(lease: Lease) -> None:
        raise NoSpace("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store.ledger, "put_lease", full)
        error = refused(lambda: machine.kubelet.publish("pod-1", image))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert machine.mounter.mounts() == []
    machine.kubelet.publish("pod-1", image)
    assert len(machine.mounter.mounts()) == 1


def test_a_volume_whose_directory_is_gone(machine: Machine, image: str) -> None:
    publish_model(image, seed=51)
    target = machine.kubelet.publish("pod-1", image)
    machine.kubelet.unpublish("pod-1", target)
    machine.kubelet.forget("pod-1")
    machine.kubelet.unpublish("pod-1", target)


def test_a_mounter_away_leaves_nothing_half_done(machine: Machine, image: str) -> None:
    model = publish_model(image, seed=52)
    machine.mounter.__exit__()
    assert refused(lambda: machine.kubelet.publish("pod-1", image)).code() is Code.UNAVAILABLE
    machine.mounter.__enter__()
    assert machine.files(machine.kubelet.publish("pod-1", image)) == model.files


def test_credentials_that_were_revoked_open_no_further_pod(tmp_root: Path) -> None:
    """What one pod was given stays; the next pod's secret is asked again once the proof is old."""
    now = [1_800_000_000.0]
    with (
        TokenAuthRegistry(users={"alice": "wonderland"}) as registry,
        Kubelet(tmp_root / "kubelet") as kubelet,
        NamespacedMounter(tmp_root / "store", kubelet.directory) as mounter,
        ServersInProcess(
            tmp_root / "store",
            ServerOptions(
                registries=ALLOWED, csi=CsiOptions(kubelet.directory, mounter.socket, "n")
            ),
            clock=lambda: now[0],
        ),
    ):
        image = f"{registry.host}/team/model:v1"
        access = Access(ExplicitCredential(registry.host, BasicCredential("alice", "wonderland")))
        publish_model(image, seed=55, access=access)
        secret = docker_config(registry.host, "alice", "wonderland")
        kubelet.publish("pod-1", image, secrets=secret)
        del registry.tokens.users["alice"]
        now[0] += 301
        error = refused(lambda: kubelet.publish("pod-2", image, secrets=secret))
        assert error.code() is Code.PERMISSION_DENIED
        assert len(mounter.mounts()) == 1


def docker_config(registry: str, user: str, password: str) -> dict[str, str]:
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {".dockerconfigjson": json.dumps({"auths": {registry: {"auth": auth}}})}


def test_a_private_model_needs_the_pod_s_own_pull_secret_each_time(machine: Machine) -> None:
    with DockerRegistry(users={"alice": "wonderland"}) as registry:
        image = f"{registry.host}/team/model:v1"
        access = Access(ExplicitCredential(registry.host, BasicCredential("alice", "wonderland")))
        model = publish_model(image, seed=53, access=access)
        secret = docker_config(registry.host, "alice", "wonderland")
        assert machine.files(machine.kubelet.publish("pod-1", image, secrets=secret)) == model.files
        for wrong in (
            {},
            docker_config(registry.host, "alice", "looking-glass"),
            docker_config("other.test", "alice", "wonderland"),
        ):
            error = refused(
                lambda wrong=wrong: machine.kubelet.publish("pod-2", image, secrets=wrong)
            )
            assert error.code() is Code.PERMISSION_DENIED
            assert "wonderland" not in error.details()
        assert len(machine.mounter.mounts()) == 1

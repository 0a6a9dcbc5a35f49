"""The mounter against the kernel: what mountinfo says, in a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.mounter.orders import MAX_LINES, MountOperation, Order, Report, VolumeTarget
from cache_agent.mounter.server import lines_of
from cache_agent.net.sockets import listen
from cache_agent.servers.csi.mount_client import MounterClient
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, Busy, InvalidInput, NotFound, Unreachable
from tests.cache_agent.mounter.mounters import (
    NamespacedMounter,
    fake_model,
    mounts_below,
    shared,
    volume,
)
from tests.servers.process import program

servers = pytest.mark.servers
LOCKED_DOWN = {"ro", "nosuid", "nodev", "noexec"}


@pytest.fixture
def kubelet(tmp_root: Path) -> Path:
    path = tmp_root / "kubelet"
    path.mkdir()
    return path


@pytest.fixture
def mounter(tmp_root: Path, kubelet: Path) -> Iterator[NamespacedMounter]:
    (tmp_root / "store/models").mkdir(parents=True)
    with NamespacedMounter(tmp_root / "store", kubelet) as running:
        yield running


@servers
def test_a_bind_is_read_only_without_devices_programs_and_setuid(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    assert mounter.client.look(target) is None
    assert mounter.client.bind(key, target)
    (mounted,) = mounter.mounts()
    assert (mounted.target, Path(mounted.root).name) == (target, key.hex)
    assert mounted.options >= LOCKED_DOWN
    file = mounter.inside(target) / "model.safetensors"
    assert file.read_bytes() == b"weights"
    with pytest.raises(OSError, match="Read-only") as caught:
        file.open("ab")
    assert caught.value.errno == errno.EROFS
    assert mounter.client.look(target) == key


@servers
def test_binding_and_unbinding_again_change_nothing(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    assert [mounter.client.bind(key, target) for _ in range(3)] == [True, False, False]
    assert len(mounter.mounts()) == 1
    assert [mounter.client.unbind(target) for _ in range(3)] == [True, False, False]
    assert mounter.mounts() == []
    assert not Path(target).exists()


@servers
def test_a_bind_that_was_not_locked_down_is_when_asked_again(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    """As when somebody else had bound it."""
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    Path(target).mkdir()
    _mount_inside(mounter, "--bind", str(tmp_root / "store/models" / key.hex), target)
    assert "rw" in mounter.mounts()[0].options
    assert mounter.client.bind(key, target)
    (mounted,) = mounter.mounts()
    assert mounted.options >= LOCKED_DOWN


@servers
def test_a_bind_is_locked_down_wherever_propagation_takes_it(tmp_root: Path, kubelet: Path) -> None:
    """The node and its pods see the mount of their own namespace, not the mounter's."""
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    with (
        shared(kubelet),
        NamespacedMounter(tmp_root / "store", kubelet, propagation="unchanged") as mounter,
    ):
        assert mounter.client.bind(key, target)
        (seen,) = mounts_below(kubelet)
        assert seen.target == target
        assert seen.options >= LOCKED_DOWN
        mounter.client.unbind(target)
        assert mounts_below(kubelet) == []


@servers
def test_what_else_is_mounted_at_a_target_is_left_alone(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    Path(target).mkdir()
    _mount_inside(mounter, "-t", "tmpfs", "tmpfs", target)
    with pytest.raises(Busy):
        mounter.client.bind(key, target)
    for order in (mounter.client.unbind, mounter.client.look):
        with pytest.raises(InvalidInput):
            order(target)
    assert len(mounter.mounts()) == 1


@servers
def test_stacked_binds_are_all_taken_away(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    mounter.client.bind(key, target)
    _mount_inside(mounter, "--bind", str(tmp_root / "store/models" / key.hex), target)
    assert len(mounter.mounts()) == 2
    mounter.client.unbind(target)
    assert mounter.mounts() == []


@servers
def test_a_volume_in_use_is_not_torn_away(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    mounter.client.bind(key, target)
    with (mounter.inside(target) / "model.safetensors").open("rb") as reader:
        with pytest.raises(Busy):
            mounter.client.unbind(target)
        assert reader.read() == b"weights"
    mounter.client.unbind(target)


@servers
@pytest.mark.parametrize(
    "link", ["pods", "pods/pod-1", "pods/pod-1/volumes/kubernetes.io~csi/model"]
)
def test_a_link_on_the_way_is_not_followed(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path, link: str
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    (kubelet / link).rename(tmp_root / "elsewhere")
    (kubelet / link).symlink_to(tmp_root / "elsewhere")
    with pytest.raises(InvalidInput):
        mounter.client.bind(key, target)
    assert mounter.mounts() == []


@servers
def test_a_link_in_the_place_of_the_mount_point_or_the_model_is_not_followed(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    Path(target).symlink_to("/etc")
    with pytest.raises(InvalidInput):
        mounter.client.bind(key, target)
    Path(target).unlink()
    (tmp_root / "store/models" / ("cd" * 32)).symlink_to("/etc")
    with pytest.raises(NotFound):
        mounter.client.bind(Digest("cd" * 32), target)
    assert mounter.mounts() == []
    assert not Path(target).exists() or not any(Path(target).iterdir())


@servers
def test_a_link_in_the_place_of_the_models_is_not_followed(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    """The agent's user owns the store: it must not choose what a privileged process binds."""
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    (tmp_root / "store/models").rename(tmp_root / "elsewhere")
    (tmp_root / "store/models").symlink_to(tmp_root / "elsewhere")
    with pytest.raises(NotFound):
        mounter.client.bind(key, target)
    assert mounter.mounts() == []


@servers
def test_a_model_or_a_volume_that_is_not_there(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    target = volume(kubelet)
    with pytest.raises(NotFound):
        mounter.client.bind(Digest("ef" * 32), target)
    key = fake_model(tmp_root / "store")
    gone = target.replace("pod-1", "pod-2")
    with pytest.raises(NotFound):
        mounter.client.bind(key, gone)
    assert not mounter.client.unbind(gone)


@servers
def test_another_user_s_orders_are_refused(tmp_root: Path, kubelet: Path) -> None:
    key, target = fake_model(tmp_root / "store"), volume(kubelet)
    with (
        NamespacedMounter(tmp_root / "store", kubelet, user=12345) as mounter,
        pytest.raises(AccessDenied),
    ):
        mounter.client.bind(key, target)


@servers
def test_fifty_pods_at_once(mounter: NamespacedMounter, tmp_root: Path, kubelet: Path) -> None:
    key = fake_model(tmp_root / "store")
    targets = [volume(kubelet, f"pod-{number}") for number in range(50)]
    threads = [threading.Thread(target=mounter.client.bind, args=(key, each)) for each in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mounts = mounter.mounts()
    assert sorted(each.target for each in mounts) == sorted(targets)
    assert all(each.options >= LOCKED_DOWN for each in mounts)


@servers
def test_orders_that_come_together_are_carried_out_in_order_each_with_its_own_outcome(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    key = fake_model(tmp_root / "store")
    targets = [volume(kubelet, f"pod-{number}") for number in range(MAX_LINES)]
    binds = [Order(MountOperation.BIND, each, key) for each in targets]
    others = [
        Order(MountOperation.BIND, targets[0].replace("pod-0", "nobody"), key),
        Order(MountOperation.BIND, "/etc", key),
        Order(MountOperation.UNBIND, targets[0]),
        Order(MountOperation.LOOK, targets[1]),
    ]
    reports = MounterClient(mounter.socket).give([*binds, *others])
    assert [each.changed for each in reports[:MAX_LINES]] == [True] * MAX_LINES
    rest = [(each.error, each.changed, each.key) for each in reports[MAX_LINES:]]
    assert rest == [
        ("NotFound", False, None), ("InvalidInput", False, None), ("", True, None), ("", False, key),
    ]  # fmt: skip
    assert len(mounter.mounts()) == MAX_LINES - 1


@servers
def test_more_orders_than_a_connection_may_bring_are_not_begun(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path
) -> None:
    order = Order(MountOperation.BIND, volume(kubelet), fake_model(tmp_root / "store")).to_bytes()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(mounter.socket))
        peer.sendall(order * (MAX_LINES + 1))
        peer.shutdown(socket.SHUT_WR)
        (report,) = lines_of(peer)
    assert Report.parse(report).error == "InvalidInput"
    assert mounter.mounts() == []


def test_a_mounter_that_dies_leaves_every_order_unanswered(tmp_root: Path) -> None:
    said = Report(changed=True).to_bytes()
    orders = [Order(MountOperation.UNBIND, "/a"), Order(MountOperation.UNBIND, "/b")]
    for answer in (b"", said, said + said[:5], b"nonsense\n"):
        with listen(tmp_root / "mounter.sock") as server, ThreadPoolExecutor(1) as pool:
            server.setblocking(True)
            given = pool.submit(MounterClient(tmp_root / "mounter.sock").give, orders)
            with server.accept()[0] as peer:
                assert len(lines_of(peer)) == 2
                peer.sendall(answer)
            assert [each.error for each in given.result()] == ["Unreachable"] * 2


@servers
@pytest.mark.parametrize(
    "noise", [b"", b"\n", b"{}\n", b"x" * 20_000, b'{"op":"bind"}\n', b"\xff\n"]
)
def test_noise_on_the_socket_is_answered_or_dropped(
    mounter: NamespacedMounter, tmp_root: Path, kubelet: Path, noise: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(mounter.socket))
        try:
            peer.sendall(noise)
            peer.shutdown(socket.SHUT_WR)
            said = peer.recv(4096)
        except OSError:
            said = b""
    assert not said or Report.parse(said).error
    assert mounter.client.look(volume(kubelet)) is None


def test_a_mounter_that_is_away_is_unreachable(tmp_root: Path) -> None:
    mounter = NamespacedMounter(tmp_root / "store", tmp_root / "kubelet")
    with pytest.raises(Unreachable):
        mounter.client.look("/x")


KUBELET = PurePosixPath("/var/lib/kubelet")
GOOD = f"{KUBELET}/pods/u-1/volumes/kubernetes.io~csi/model/mount"


def test_a_target_is_a_pod_s_csi_volume_and_nothing_else() -> None:
    assert VolumeTarget.parse(GOOD, KUBELET) == VolumeTarget("u-1", "model")
    for bad in (
        "", "/", "/etc", str(KUBELET), GOOD + "/", GOOD + "/..", GOOD.replace("u-1", ".."), GOOD.replace("u-1", ""),
        GOOD.replace("csi", "empty-dir"), GOOD[1:], "//" + GOOD[1:], GOOD.replace("/mount", "/../mount"),
        GOOD.replace("/pods", "/pods/."), GOOD.replace("model", "a\nb"), GOOD + "\0",
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            VolumeTarget.parse(bad, KUBELET)


@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(["..", "pods", "u", "volumes", "kubernetes.io~csi", "m", "mount", ""])
    )
    .map("/".join)
    .map(lambda p: f"{KUBELET}/{p}")
)
def test_any_target_stays_below_its_pod(text: str) -> None:
    try:
        target = VolumeTarget.parse(text, KUBELET)
    except InvalidInput:
        return
    assert os.path.normpath(f"{KUBELET}/{target.parent}/mount") == text


@given(st.sampled_from(MountOperation), st.text(max_size=20))
def test_orders_survive_the_wire(operation: MountOperation, target: str) -> None:
    key = Digest("ab" * 32) if operation is MountOperation.BIND else None
    order = Order(operation, target, key)
    assert Order.parse(order.to_bytes()) == order


@given(st.binary(max_size=100))
def test_any_bytes_are_an_order_or_refused(data: bytes) -> None:
    try:
        Order.parse(data)
    except InvalidInput:
        return


def _mount_inside(mounter: NamespacedMounter, *arguments: str) -> None:
    namespace = f"--mount={mounter.proc}/ns/mnt"
    subprocess.run([program("nsenter"), namespace, program("mount"), *arguments], check=True)

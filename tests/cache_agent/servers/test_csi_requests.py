"""What kubelet asks, parsed: any attributes make a request or are refused; and the wire's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent import errors as ours
from cache_agent.servers.csi.driver import code_of
from cache_agent.servers.csi.messages import MESSAGES
from cache_agent.servers.csi.requests import Capability, Publish, VolumeUse, parse_publish
from modelimage import errors
from modelimage.errors import InvalidInput, WeightyardError

KUBELET = PurePosixPath("/var/lib/kubelet")
TARGET = f"{KUBELET}/pods/u-1/volumes/kubernetes.io~csi/model/mount"
PREFIX = "csi.storage.k8s.io/"
GOOD = {f"{PREFIX}ephemeral": "true", f"{PREFIX}pod.uid": "u-1", "image": "reg.test/m:v1"}


MOUNT = Capability(block=False, mount=True, access_mode=1)


def parsed(
    attributes: dict[str, str],
    target: str = TARGET,
    volume: str = "v",
    capability: Capability = MOUNT,
) -> Publish:
    return parse_publish(
        volume_id=volume,
        target=target,
        attributes=attributes,
        secrets={"password": "wonderland"},
        capability=capability,
        readonly=True,
        kubelet=KUBELET,
    )


def test_a_request() -> None:
    names = {f"{PREFIX}pod.name": "a", f"{PREFIX}pod.namespace": "team"}
    wanted = parsed({**GOOD, **names, "variant": "int4"})
    assert (wanted.pod, wanted.pod_name, wanted.what) == (
        "u-1",
        "team/a",
        ("reg.test/m:v1", "int4"),
    )
    assert "wonderland" not in repr(wanted)


TRACE = f"00-{'4b' * 16}-{'f0' * 8}-01"


def test_a_trace_is_taken_as_w3c_writes_it() -> None:
    assert parsed({**GOOD, "traceparent": TRACE}).trace == TRACE
    assert parsed(GOOD).trace == ""


@pytest.mark.parametrize("text", ["x", TRACE.upper(), f"{TRACE}\n", TRACE * 2, TRACE[1:]])
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parsed({**GOOD, "traceparent": text})


@pytest.mark.parametrize("missing", list(GOOD))
def test_every_attribute_is_needed(missing: str) -> None:
    with pytest.raises(InvalidInput):
        parsed({name: value for name, value in GOOD.items() if name != missing})


@pytest.mark.parametrize(
    "capability",
    [Capability(block=True, mount=False, access_mode=1), Capability(block=True, mount=True, access_mode=1),
     Capability(block=False, mount=False, access_mode=1), Capability(block=False, mount=True, access_mode=0),
     Capability(block=False, mount=True, access_mode=8), Capability(block=False, mount=True, access_mode=-1)],
)  # fmt: skip
def test_a_capability_that_is_missing_or_is_no_directory_s_is_refused(
    capability: Capability,
) -> None:
    with pytest.raises(InvalidInput):
        parsed(GOOD, capability=capability)


@pytest.mark.parametrize("mode", range(1, 8))
def test_every_access_mode_reads(mode: int) -> None:
    assert parsed(GOOD, capability=replace(MOUNT, access_mode=mode)).pod == "u-1"


@pytest.mark.parametrize("volume", ["v", "x" * 128, "ü" * 64, "a b/c:@+rw"])
def test_ids_are_up_to_128_bytes(volume: str) -> None:
    assert parsed(GOOD, volume=volume).volume_id == volume


@pytest.mark.parametrize("volume", ["", "x" * 129, "ü" * 65, "a\nb", "\0"])
def test_other_ids_are_refused(volume: str) -> None:
    with pytest.raises(InvalidInput):
        parsed(GOOD, volume=volume)


@pytest.mark.parametrize("kubelet", ["/var/lib/kubelet", "/" + "/".join(["d" * 200] * 10)])
def test_paths_may_be_longer_than_ids(kubelet: str) -> None:
    target = f"{kubelet}/pods/u-1/volumes/kubernetes.io~csi/{'n' * 253}/mount"
    wanted = parse_publish(
        volume_id="v", target=target, attributes=GOOD, secrets={}, capability=MOUNT, readonly=True,
        kubelet=PurePosixPath(kubelet),
    )  # fmt: skip
    assert wanted.target == target


@given(*[st.tuples(st.text(min_size=1, max_size=6), st.text(max_size=6), st.booleans())] * 2)
def test_uses_that_differ_have_leases_that_differ(
    one: tuple[str, str, bool], other: tuple[str, str, bool]
) -> None:
    assert (VolumeUse(*one).lease == VolumeUse(*other).lease) is (one == other)


attributes = st.dictionaries(
    st.sampled_from(["image", "variant", f"{PREFIX}pod.uid", f"{PREFIX}ephemeral", "x"]) | st.text(max_size=5),
    st.sampled_from(["true", "u-1", "reg.test/m:v1", "oci:/etc", "../x", "a" * 3000]) | st.text(max_size=20),
)  # fmt: skip


@given(attributes, st.just(TARGET) | st.text(max_size=30), st.text(max_size=10))
def test_any_request_is_understood_or_refused(
    given_attributes: dict[str, str], target: str, volume: str
) -> None:
    try:
        wanted = parsed({**GOOD, **given_attributes}, target, volume)
    except InvalidInput:
        return
    assert wanted.target == TARGET
    assert wanted.image.registry
    assert "/" not in (wanted.variant or "")


def every_error() -> list[type[WeightyardError]]:
    found = [*vars(errors).values(), *vars(ours).values()]
    return [e for e in found if isinstance(e, type) and issubclass(e, WeightyardError)]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_a_code_and_a_success_none(kind: type[WeightyardError]) -> None:
    assert code_of(kind("x")).name not in ("OK", "UNKNOWN", "CANCELLED")


def test_the_bytes_are_those_of_the_specification() -> None:
    """Field numbers and types as csi.proto and kubelet's api.proto have them, spelled out byte by byte."""
    request = MESSAGES["NodePublishVolumeRequest"](
        volume_id="v", target_path="t", readonly=True, secrets={"k": "s"}, volume_context={"c": "x"}
    )
    expected = b"\x0a\x01v\x22\x01t\x30\x01\x3a\x06\x0a\x01k\x12\x01s\x42\x06\x0a\x01c\x12\x01x"
    assert request.SerializeToString(deterministic=True) == expected
    info = MESSAGES["PluginInfo"](
        type="CSIPlugin", name="n", endpoint="e", supported_versions=["1.0.0"]
    )
    assert info.SerializeToString() == b"\x0a\x09CSIPlugin\x12\x01n\x1a\x01e\x22\x051.0.0"
    usage = MESSAGES["VolumeUsage"](available=1, total=2, used=3, unit=1)
    assert usage.SerializeToString() == b"\x08\x01\x10\x02\x18\x03\x20\x01"
    assert (
        MESSAGES["ProbeResponse"](ready={"value": True}).SerializeToString() == b"\x0a\x02\x08\x01"
    )


def test_fields_of_newer_kubelets_are_skipped() -> None:
    request = MESSAGES["NodeUnpublishVolumeRequest"].FromString(
        b"\x0a\x01v\x12\x01t\xfa\x07\x03new"
    )
    assert (request.volume_id, request.target_path) == ("v", "t")

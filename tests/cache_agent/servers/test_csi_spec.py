"""The table of CSI's messages against the specification, as protoc compiled it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.servers.csi.driver import Driver
from cache_agent.servers.csi.driver_options import CsiOptions
from cache_agent.servers.csi.messages import CSI, MESSAGES
from tests.cache_agent.servers.csi_spec import message, specification

OURS = sorted(name for name, kind in MESSAGES.items() if kind.DESCRIPTOR.file.package == CSI)
# What travels alike: an enumeration as the varint of an int32.
ALIKE = {FieldDescriptor.TYPE_ENUM: FieldDescriptor.TYPE_INT32}


def spec_messages() -> Iterator[Descriptor]:
    """Every message of the specification, also those within others, and the wrapper that it uses."""
    waiting = list(specification().message_types_by_name.values())
    while waiting:
        found = waiting.pop()
        yield found
        waiting += [each for each in found.nested_types if not each.GetOptions().map_entry]
    ready = specification().message_types_by_name["ProbeResponse"].fields_by_name["ready"]
    yield ready.message_type


SPEC = {found.name: found for found in spec_messages()}


def shape(field: FieldDescriptor) -> tuple[Any, ...]:
    """What of a field is seen on the wire."""
    kind = ALIKE.get(field.type, field.type)
    inner = field.message_type
    if inner is None:
        return field.number, kind, field.is_repeated
    if inner.GetOptions().map_entry:
        return field.number, "map", *(each.type for each in inner.fields)
    return field.number, kind, field.is_repeated, inner.name


@pytest.mark.parametrize("name", OURS)
def test_every_field_is_the_specification_s(name: str) -> None:
    ours, spec = MESSAGES[name].DESCRIPTOR, SPEC[name]
    for field in ours.fields:
        assert shape(field) == shape(spec.fields_by_name[field.name]), field.name


def test_every_call_is_one_of_the_specification() -> None:
    driver = Driver(None, CsiOptions(None, None, "n"), "1")  # type: ignore[arg-type]
    services = specification().services_by_name
    assert set(driver.identity()) == set(services["Identity"].methods_by_name)
    # The rest is of drivers that stage, or grow volumes: it is not among the capabilities that ours tells.
    left = set(services["Node"].methods_by_name) - set(driver.node())
    assert left == {"NodeStageVolume", "NodeUnstageVolume", "NodeExpandVolume"}
    for service, methods in (("Identity", driver.identity()), ("Node", driver.node())):
        for name in methods:
            called = services[service].methods_by_name[name]
            assert called.input_type.name == f"{name}Request"
            assert called.output_type.name == f"{name}Response"


texts = st.text(max_size=8)


@given(
    texts, texts, st.booleans(), st.dictionaries(texts, texts, max_size=3),
    st.dictionaries(texts, texts, max_size=3), st.booleans(), st.lists(texts, max_size=2),
)  # fmt: skip
def test_what_kubelet_writes_is_read_as_it_was_meant(
    volume: str, target: str, readonly: bool, secrets: dict[str, str], context: dict[str, str],
    block: bool, flags: list[str],
) -> None:  # fmt: skip
    access = message("VolumeCapability.BlockVolume")() if block else None
    mount = None if block else message("VolumeCapability.MountVolume")(mount_flags=flags)
    capability = message("VolumeCapability")(
        block=access, mount=mount, access_mode=message("VolumeCapability.AccessMode")(mode=3)
    )
    written = message("NodePublishVolumeRequest")(
        volume_id=volume, target_path=target, readonly=readonly, secrets=secrets, volume_context=context,
        volume_capability=capability, publish_context={"newer": "skipped"},
    )  # fmt: skip
    read = MESSAGES["NodePublishVolumeRequest"].FromString(written.SerializeToString())
    assert (read.volume_id, read.target_path, read.readonly) == (volume, target, readonly)
    assert (dict(read.secrets), dict(read.volume_context)) == (secrets, context)
    assert read.volume_capability.HasField("block") is block
    assert list(read.volume_capability.mount.mount_flags) == ([] if block else flags)
    assert read.volume_capability.access_mode.mode == 3


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.sampled_from([1, 2]))
def test_what_the_driver_writes_is_read_as_it_was_meant(used: int, total: int, unit: int) -> None:
    usage = MESSAGES["VolumeUsage"](used=used, total=total, unit=unit)
    written = MESSAGES["NodeGetVolumeStatsResponse"](usage=[usage])
    read = message("NodeGetVolumeStatsResponse").FromString(written.SerializeToString())
    assert (read.usage[0].used, read.usage[0].total, read.usage[0].unit) == (used, total, unit)

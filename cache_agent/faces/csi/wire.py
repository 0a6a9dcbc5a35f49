"""The messages of CSI v1 (container-storage-interface/spec, csi.proto) and of kubelet's plugin registration v1.

Only the fields that a node driver of inline volumes reads or writes; protobuf skips the others. Made from one table at
import, so there is no generated code that would have to match the installed protobuf. Numbers are the specifications'.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

CSI: Final = "csi.v1"
REGISTRATION: Final = "pluginregistration"
_TEXT_MAP: Final = "map"
_SCALARS: Final = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    # Enumerations travel as the same varints.
    "enum": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}

# message -> ((number, name, type), ...); a type in brackets is repeated.
_Table = dict[str, tuple[tuple[int, str, str], ...]]
_CSI_MESSAGES: Final[_Table] = {
    "GetPluginInfoRequest": (),
    "GetPluginInfoResponse": ((1, "name", "string"), (2, "vendor_version", "string")),
    "GetPluginCapabilitiesRequest": (),
    "GetPluginCapabilitiesResponse": (),
    "ProbeRequest": (),
    "BoolValue": ((1, "value", "bool"),),
    "ProbeResponse": ((1, "ready", "BoolValue"),),
    "BlockVolume": (),
    "MountVolume": ((1, "fs_type", "string"), (2, "mount_flags", "[string]")),
    "AccessMode": ((1, "mode", "enum"),),
    "VolumeCapability": (
        (1, "block", "BlockVolume"),
        (2, "mount", "MountVolume"),
        (3, "access_mode", "AccessMode"),
    ),
    "NodePublishVolumeRequest": (
        (1, "volume_id", "string"),
        (3, "staging_target_path", "string"),
        (4, "target_path", "string"),
        (5, "volume_capability", "VolumeCapability"),
        (6, "readonly", "bool"),
        (7, "secrets", _TEXT_MAP),
        (8, "volume_context", _TEXT_MAP),
    ),
    "NodePublishVolumeResponse": (),
    "NodeUnpublishVolumeRequest": ((1, "volume_id", "string"), (2, "target_path", "string")),
    "NodeUnpublishVolumeResponse": (),
    "NodeGetVolumeStatsRequest": ((1, "volume_id", "string"), (2, "volume_path", "string")),
    "VolumeUsage": (
        (1, "available", "int64"),
        (2, "total", "int64"),
        (3, "used", "int64"),
        (4, "unit", "enum"),
    ),
    "NodeGetVolumeStatsResponse": ((1, "usage", "[VolumeUsage]"),),
    "NodeGetCapabilitiesRequest": (),
    "RPC": ((1, "type", "enum"),),
    "NodeServiceCapability": ((1, "rpc", "RPC"),),
    "NodeGetCapabilitiesResponse": ((1, "capabilities", "[NodeServiceCapability]"),),
    "NodeGetInfoRequest": (),
    "NodeGetInfoResponse": ((1, "node_id", "string"), (2, "max_volumes_per_node", "int64")),
}
_REGISTRATION_MESSAGES: Final[_Table] = {
    "InfoRequest": (),
    "PluginInfo": (
        (1, "type", "string"),
        (2, "name", "string"),
        (3, "endpoint", "string"),
        (4, "supported_versions", "[string]"),
    ),
    "RegistrationStatus": ((1, "plugin_registered", "bool"), (2, "error", "string")),
    "RegistrationStatusResponse": (),
}

UNIT_BYTES: Final = 1
UNIT_INODES: Final = 2
GET_VOLUME_STATS: Final = 2


def _file(package: str, messages: _Table) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"weightyard/{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            _add_field(package, message, number, field, kind)
    return file


def _add_field(
    package: str, message: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str
) -> None:
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_OPTIONAL
    if kind == _TEXT_MAP:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for index, part in enumerate(("key", "value"), 1):
            entry.field.add(
                name=part, number=index, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL
            )
        kind = f"[{message.name}.{entry.name}]"
    if kind.startswith("["):
        field.label, kind = field.LABEL_REPEATED, kind[1:-1]
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    made: dict[str, Any] = {}
    for package, messages in ((CSI, _CSI_MESSAGES), (REGISTRATION, _REGISTRATION_MESSAGES)):
        pool.Add(_file(package, messages))
        for name in messages:
            descriptor = pool.FindMessageTypeByName(f"{package}.{name}")
            made[name] = message_factory.GetMessageClass(descriptor)
    return made


MESSAGES: Final = _classes()

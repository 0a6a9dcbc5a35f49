"""The messages of CSI v1 (container-storage-interface/spec, csi.proto) and of kubelet's plugin registration v1.

Holds only the fields that a node driver for inline volumes reads or writes; protobuf skips the others. Built from a
table at import, because generated code would have to match the installed protobuf. Field numbers are the specs'.
"""

from __future__ import annotations

from typing import Final

from cache_agent.net.protobuf import Table, message_classes

CSI: Final = "csi.v1"
REGISTRATION: Final = "pluginregistration"

_CSI_MESSAGES: Final[Table] = {
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
        (7, "secrets", "map"),
        (8, "volume_context", "map"),
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
_REGISTRATION_MESSAGES: Final[Table] = {
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

# Values of csi.proto's enums VolumeUsage.Unit and NodeServiceCapability.RPC.Type.
UNIT_BYTES: Final = 1
UNIT_INODES: Final = 2
GET_VOLUME_STATS: Final = 2


MESSAGES: Final = message_classes({CSI: _CSI_MESSAGES, REGISTRATION: _REGISTRATION_MESSAGES})

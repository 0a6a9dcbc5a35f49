"""CSI v1 as its specification's csi.proto was compiled by protoc, from a package of another project (setup.sh).

An independent word on numbers and types: kubelet's side of the tests speaks with these messages, so that a mistake in
our own table can't agree with itself. The module is read, not run: it was made for an older protobuf.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import files
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import FileDescriptor

_PACKAGE, _MODULE = "ember-csi", "ember_csi/v1_1_0/csi_pb2.py"
_IMPORTS = (descriptor_pb2, timestamp_pb2, wrappers_pb2)


@cache
def specification() -> FileDescriptor:
    """The specification's file. `scripts/setup.sh base` installs what it is read from."""
    pool = descriptor_pool.DescriptorPool()
    for module in _IMPORTS:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_compiled())
    return pool.FindFileByName("csi.proto")


@cache
def message(name: str) -> Any:
    """A message's class: `NodePublishVolumeRequest`, `VolumeCapability.MountVolume`."""
    first, *inner = name.split(".")
    found = specification().message_types_by_name[first]
    for each in inner:
        found = found.nested_types_by_name[each]
    return message_factory.GetMessageClass(found)


def _compiled() -> bytes:
    (path,) = (each for each in files(_PACKAGE) or () if str(each) == _MODULE)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            return bytes(ast.literal_eval(node.value))
    raise AssertionError(f"{_MODULE} holds no compiled file")

"""Builds protobuf message classes from tables at import, because generated code must match the installed protobuf.

A table holds only the fields that are read or written; protobuf skips the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TEXT_MAP: Final = "map"
_SCALARS: Final = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    # On the wire an enum is a varint like int32, so its values needn't be declared.
    "enum": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}

# message -> ((number, name, type), ...); a type in brackets is repeated, `map` is map<string, string>.
Table = Mapping[str, tuple[tuple[int, str, str], ...]]


def message_classes(packages: Mapping[str, Table]) -> dict[str, Any]:
    """The classes of all messages, by name."""
    # A pool of their own: the default pool refuses names that another library has registered with other fields.
    pool = descriptor_pool.DescriptorPool()
    made: dict[str, Any] = {}
    for package, messages in packages.items():
        pool.Add(_file(package, messages))
        for name in messages:
            descriptor = pool.FindMessageTypeByName(f"{package}.{name}")
            made[name] = message_factory.GetMessageClass(descriptor)
    return made


def _file(package: str, messages: Table) -> descriptor_pb2.FileDescriptorProto:
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
    # proto3 encodes a map as repeated entries of a nested message with fields 1 and 2.
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

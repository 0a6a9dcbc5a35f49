"""Messages of gRPC services, made from a table at import: no generated code that must match the installed protobuf.

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
    # Enumerations travel as the same varints.
    "enum": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}

# message -> ((number, name, type), ...); a type in brackets is repeated, `map` maps texts to texts.
Table = Mapping[str, tuple[tuple[int, str, str], ...]]


def message_classes(packages: Mapping[str, Table]) -> dict[str, Any]:
    """The classes of all messages, by name, in a pool of their own."""
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

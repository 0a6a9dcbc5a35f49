"""Writes a commented Workspace to start from. Pure: the comments are the schema's own descriptions.

Optional fields are written as `#field: value`, so that removing the mark gives a valid document; prose has a space
after the mark.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from workspace.runtime_spec import Runtime
from workspace.schema import Model, Resources, Spec, Workspace

_WIDTH: Final = 110
_HEAD: Final = """\
# A Workspace: which model to serve, with what, on what.
#   weightyard up {file}                         serves it on this machine
#   weightyard render {file} --to kubernetes     writes it for a cluster, or --to compose
# Lines that begin with `#name:` are optional fields, with their default or an example.
"""
# What to write for a field without a default. Scale is one field here: its parts belong together.
_EXAMPLES: Final[Mapping[str, Any]] = {
    "model.image": "registry.example/team/model:v1",
    "model.hub": "org/name",
    "model.s3": "bucket/prefix",
    "model.build": {"to": "registry.example/team/model", "variants": ["int8"]},
    "model.pullSecret": "registry",
    "model.file": "model-Q4_K_M.gguf",
    "runtime.image": "registry.example/team/vllm:v1",
    "runtime.args": ["--max-num-seqs", "64"],
    "runtime.env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}],
    "runtime.adapters": [{"name": "support", "image": "registry.example/team/adapter:v1"}],
    "runtime.servedModelName": "my-model",
    "runtime.contextLength": 8192,
    "runtime.tracing": {"endpoint": "http://collector.monitoring:4317"},
    "runtime.startupSeconds": 600,
    "resources.gpus": 1,
    "resources.gpu": "L4",
    "resources.gpuMemory": "24Gi",
    "resources.fraction": 0.5,
    "resources.migProfile": "1g.10gb",
    "resources.cpu": "4",
    "resources.memory": "16Gi",
    "resources.nodeSelector": {"pool": "inference"},
    "resources.tolerations": [{"key": "inference", "operator": "Exists"}],
    "resources.provisioning": {"by": "karpenter", "capacity": {"spot": "preferred"}},
    "replicas": 1,
    "scale": {"min": 1, "max": 4, "queueDepth": 4},
    "template": {"runtimeClassName": "nvidia", "labels": {"team": "a"}},
    "route": {
        "parentRefs": [{"name": "public", "namespace": "gateways"}],
        "hostnames": ["chat.example.com"],
    },
}
_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {
    "model": Model,
    "runtime": Runtime,
    "resources": Resources,
}
_LEFT_OUT: Final = ("tenancy", "rollout")  # of operators, see the cluster's pages


def starter(document: Mapping[str, Any], *, file: str) -> str:
    """The text of a Workspace with the values of `document`, and every other common field as a comment.

    Law: it parses to `document`.
    """
    workspace = Workspace.model_validate(document)
    given = workspace.to_document()
    # It becomes a part of comments and of commands to copy.
    shown = shlex.quote(file) if file.isprintable() else "FILE"
    lines = [_HEAD.format(file=shown) + f"apiVersion: {workspace.api_version}", "kind: Workspace"]
    lines += ["metadata:", f"  name: {workspace.name}", "spec:"]
    for name, section in _SECTIONS.items():
        values = given["spec"].get(name, {})
        # A section without any value would be null, which isn't a mapping: it is a comment as well.
        lines.append(f"  {name}:" if values else f"  #{name}:")
        lines += _fields(section, values, f"{name}.", "    ")
    rest = {field: spec for field, spec in Spec.model_fields.items() if field not in _SECTIONS}
    for field, info in rest.items():
        if field not in _LEFT_OUT:
            lines += _field(field, info, given["spec"], "", "  ")
    return "\n".join(lines) + "\n"


def described(kind: type[BaseModel], above: str) -> Iterator[tuple[str, str, str]]:
    """Every field of a section, those of its own sections included: its path, its description and its default."""
    for name, info in kind.model_fields.items():
        path, nested = f"{above}.{info.alias or name}", _section_of(info)
        default = info.get_default(call_default_factory=True)
        value = None if nested or info.is_required() else _plain(default)
        yield path, _description(info), "" if value in (None, (), {}) else json.dumps(value)
        if nested is not None:
            yield from described(nested, f"{path}[]" if info.default == () else path)


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a field's value, or of the items of its list, if it has fields of its own."""
    found: tuple[Any, ...] = (info.annotation,)
    while found:
        for each in found:
            if isinstance(each, type) and issubclass(each, BaseModel):
                return each
        found = tuple(inner for each in found for inner in get_args(each))
    return None


def _fields(
    kind: type[BaseModel], values: Mapping[str, Any], above: str, indent: str
) -> Iterator[str]:
    for name, info in kind.model_fields.items():
        yield from _field(info.alias or name, info, values, above, indent)


def _field(
    name: str, info: FieldInfo, values: Mapping[str, Any], above: str, indent: str
) -> Iterator[str]:  # fmt: skip
    yield from (f"{indent}# {line}" for line in textwrap.wrap(_description(info), _WIDTH))
    given = name in values
    value = values[name] if given else _EXAMPLES.get(above + name, _plain(info.default))
    mark = "" if given else "#"
    yield f"{indent}{mark}{name}: {json.dumps(value, ensure_ascii=False)}"


def _description(info: FieldInfo) -> str:
    choices = [
        member.value
        for kind in (info.annotation, *get_args(info.annotation))
        if isinstance(kind, type) and issubclass(kind, Enum)
        for member in kind
    ]
    text = (info.description or _kind(info).__doc__ or "").split("\n\n")[0]
    return f"{text} One of {', '.join(choices)}." if choices else text


def _kind(info: FieldInfo) -> type:
    """The field's class: an enumeration's or a section's docstring describes a field without a description."""
    kinds = (info.annotation, *get_args(info.annotation))
    return next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel | Enum))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value

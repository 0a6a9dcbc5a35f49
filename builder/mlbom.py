"""The ML-BOM of a variant: a CycloneDX 1.6 document that lists the model and its files. Pure.

CycloneDX 1.6 (ECMA-424): the model is a component of type `machine-learning-model` with a model card, each file a
component with its sha256. It states what the record knows and nothing else, so equal records give equal bytes.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

from builder.provenance import as_uri
from modelimage import canonical
from modelimage.record import Record, RecordFile

MEDIA_TYPE: Final = "application/vnd.cyclonedx+json"
FILE_NAME: Final = "sbom.cdx.json"
_PROPERTY: Final = "dev.weightyard"


def ml_bom(record: Record, *, builder_version: str, created: str | None = None) -> bytes:
    """The document of one variant. `created` is an RFC 3339 time from SOURCE_DATE_EPOCH; None omits the time."""
    model = _model(record)
    tool = {"type": "application", "name": "weightyard", "version": builder_version}
    metadata = {"timestamp": created, "tools": {"components": [tool]}, "component": model}
    return canonical.to_bytes(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            # From the record: a random one would make each build's document another one.
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, str(record.key))}",
            "version": 1,
            "metadata": _known(metadata),
            "components": [_file(file) for file in record.files],
            "dependencies": [
                {"ref": model["bom-ref"], "dependsOn": [_file_ref(file) for file in record.files]}
            ],
        }
    )


def model_name(record: Record) -> tuple[str, str]:
    """The organization, which may be empty, and the name of a model, from its source's URI."""
    path = record.source.partition("://")[2] or record.source
    parts = [part for part in path.split("/") if part]
    name = parts[-1] if parts else record.facts.architecture or "model"
    return ("/".join(parts[:-1]) if len(parts) > 1 else "", name)


def _model(record: Record) -> dict[str, Any]:
    group, name = model_name(record)
    facts = record.facts
    card = {"modelArchitecture": facts.architecture, "architectureFamily": facts.model_type}
    url = as_uri(record.source)
    source = [{"type": "distribution", "url": url}] if url else None
    return _known(
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{record.key}",
            "group": group,
            "name": name,
            "version": record.revision or record.variant,
            "licenses": [{"expression": record.license}] if record.license else None,
            "externalReferences": source,
            "modelCard": {"modelParameters": _known(card)},
            "pedigree": _pedigree(record),
            "properties": _properties(record),
        }
    )


def _pedigree(record: Record) -> dict[str, Any] | None:
    """What a quantized variant was made from, and how."""
    made = record.quantization
    if made is None:
        return None
    group, name = model_name(record)
    origin = {"type": "machine-learning-model", "group": group, "name": name}
    known = _known({**origin, "version": record.revision})
    note = ", ".join(f"{key}: {value}" for key, value in sorted(made.items()))
    return {"ancestors": [known], "notes": f"quantized; {note}"}


def _properties(record: Record) -> list[dict[str, str]]:
    facts = record.facts
    stated = {
        "model-key": str(record.key),
        "variant": record.variant,
        "parameters": facts.parameters,
        "dtype": facts.dtype,
        "format": facts.format,
        "quantization": facts.quantization,
        "context-length": facts.context_length,
    }
    return [
        {"name": f"{_PROPERTY}:{name}", "value": str(value)}
        for name, value in stated.items()
        if value
    ]


def _file(file: RecordFile) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": _file_ref(file),
        "name": file.path,
        "hashes": [{"alg": "SHA-256", "content": file.digest.hex}],
        "properties": [
            {"name": f"{_PROPERTY}:size", "value": str(file.size)},
            {"name": f"{_PROPERTY}:role", "value": file.role.value},
        ],
    }


def _file_ref(file: RecordFile) -> str:
    return f"file:{file.path}"


def _known(values: dict[str, Any]) -> dict[str, Any]:
    # CycloneDX's schema allows no null, and an empty value would state what isn't known.
    return {name: value for name, value in values.items() if value}

"""The record: it is parsed as it is written, and a stranger's record can do nothing but be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.recipe import LayerFile, layer_recipe
from modelimage.record import (
    CHUNK_SIZE,
    ModelFacts,
    Record,
    RecordFile,
    RecordLayer,
    Role,
)
from tests.modelimage.strategies import json_documents, records

LAYER = Digest.of(b"layer")
DIGEST = Digest.of(b"file")


def small_record(path: str = "model.safetensors", size: int = CHUNK_SIZE + 1) -> Record:
    file = RecordFile(path, size, DIGEST, Role.WEIGHT, LAYER, ("0" * 64,) * -(-size // CHUNK_SIZE))
    layer_size = layer_recipe([LayerFile(path, size, DIGEST)]).size
    return Record(
        variant="bf16",
        source="hf://org/name",
        revision="abc",
        license="apache-2.0",
        facts=ModelFacts(architecture="LlamaForCausalLM", parameters=7),
        files=(file,),
        layers=(RecordLayer(LAYER, layer_size, Role.WEIGHT),),
        quantization=None,
    )


@given(records())
def test_a_record_is_parsed_as_it_is_written(record: Record) -> None:
    parsed = Record.parse(record.to_bytes())
    assert parsed == record
    assert parsed.key == record.key == Digest.of(record.to_bytes())
    assert parsed.size == sum(file.size for file in record.files)
    for layer in record.layers:
        assert parsed.recipe(layer.digest).size == layer.size


def _set(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


CHANGES = {
    "another schema": _set("schemaVersion", value=2),
    "a schema that is true": _set("schemaVersion", value=True),
    "another chunk size": _set("chunkSize", value=1),
    "an unknown member": _set("unknown", value=1),
    "an unknown member of a file": _set("files", 0, "unknown", value=1),
    "a path that escapes": _set("files", 0, "path", value="../x"),
    "a reserved path": _set("files", 0, "path", value="weightyard.json"),
    "a negative size": _set("files", 0, "size", value=-1),
    "a size as text": _set("files", 0, "size", value="1"),
    "a size that is true": _set("files", 0, "size", value=True),
    "a size beyond its layer": _set("files", 0, "size", value=2 * CHUNK_SIZE),
    "a chunk too few": _set("files", 0, "blake3", value=["0" * 64]),
    "a chunk digest that is none": _set("files", 0, "blake3", value=["0" * 64, "x"]),
    "a digest that is none": _set("files", 0, "sha256", value="x"),
    "an unknown role": _set("files", 0, "role", value="other"),
    "a role that is a list": _set("files", 0, "role", value=[]),
    "a layer that isn't listed": _set("files", 0, "layer", value=str(DIGEST)),
    "a layer of another size": _set("layers", 0, "size", value=1024),
    "no layers": _set("layers", value=[]),
    "layers that are none": _set("layers", value=None),
    "files that are an object": _set("files", value={"a": 1}),
    "a source that is text": _set("source", value="hf://x"),
    "quantization that is a list": _set("quantization", value=[]),
    "extra that is a list": _set("extra", value=[["a", "b"]]),
    "extra with infinity": _set("extra", value={"a": float("inf")}),
    "extra with a lone surrogate": _set("extra", value={"a": "\ud800"}),
    "a variant that is a number": _set("variant", value=4),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_malformed_record_is_refused(change: Callable[[Any], None]) -> None:
    document = json.loads(small_record().to_bytes())
    change(document)
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(InvalidImage):
        Record.parse(data)


def test_a_record_in_another_form_is_refused() -> None:
    """Else the model key would not be the digest of the bytes that the image holds."""
    data = small_record().to_bytes()
    for other in (data + b"\n", b" " + data, data.replace(b'"files"', b'"extra":{},"files"')):
        with pytest.raises(InvalidImage):
            Record.parse(other)


def test_a_path_twice_or_as_file_and_directory_is_refused() -> None:
    first = small_record()
    document = json.loads(first.to_bytes())
    for paths in (["a", "a"], ["b", "a"], ["a", "a/b"]):
        files = [
            {**document["files"][0], "path": path, "size": 1, "blake3": ["0" * 64]}
            for path in paths
        ]
        held = [LayerFile(path, 1, DIGEST) for path in paths]
        layers = [{**document["layers"][0], "size": layer_recipe(held).size}]
        changed = canonical.to_bytes({**document, "files": files, "layers": layers})
        with pytest.raises(InvalidImage, match=r"paths are unsorted|malformed"):
            Record.parse(changed)


def test_a_layer_twice_is_refused() -> None:
    document = json.loads(small_record().to_bytes())
    changed = canonical.to_bytes({**document, "layers": document["layers"] * 2})
    with pytest.raises(InvalidImage, match="listed twice"):
        Record.parse(changed)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_an_invalid_image(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        Record.parse(data)


@given(records(), st.data())
def test_a_record_with_any_part_replaced_is_parsed_or_refused(
    record: Record, data: st.DataObject
) -> None:
    """Fuzzing from inside: replace one value anywhere in the document by any JSON."""
    document = json.loads(record.to_bytes())
    target, steps = document, []
    while True:
        steps = sorted(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(steps))
        inner = target[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        target = inner
    target[key] = data.draw(json_documents)
    changed = canonical.to_bytes(document)
    try:
        parsed = Record.parse(changed)
    except InvalidImage:
        return
    assert parsed.to_bytes() == changed


def test_a_deep_document_is_refused() -> None:
    deep = "[" * 900 + "]" * 900
    data = small_record().to_bytes().replace(b'"extra":{}', f'"extra":{{"a":{deep}}}'.encode())
    parsed = Record.parse(data)
    assert parsed.to_bytes() == data
    with pytest.raises(InvalidImage):
        Record.parse(data.replace(deep.encode(), b"[" * 100_000 + b"]" * 100_000))


def test_many_layers_and_files_cost_no_more_than_their_sum() -> None:
    """20,000 files over 20,000 layers: files times layers would take minutes."""
    count = 20_000
    digests = [Digest.of(b"%d" % index) for index in range(count)]
    paths = sorted(f"{index}.bin" for index in range(count))
    files = tuple(
        RecordFile(path, 0, digest, Role.DOC, digest, ())
        for path, digest in zip(paths, digests, strict=True)
    )
    layers = tuple(
        RecordLayer(file.layer, layer_recipe([LayerFile(file.path, 0, file.digest)]).size, Role.DOC)
        for file in files
    )
    record = Record("v", "s", "r", "l", ModelFacts(), files, layers)
    assert Record.parse(record.to_bytes()) == record

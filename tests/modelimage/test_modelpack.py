"""What ModelPack tools find in our manifests: which file a layer holds, and where the model came from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from modelimage.layout import Layout
from modelimage.publication import Publication, publication
from modelimage.record import Record
from modelimage.resolve import resolve_model
from modelimage.source_uris import source_url
from tests.builder.building import build_here
from tests.builder.checkpoints import sharded

FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    scratch = tmp_path_factory.mktemp("modelpack")
    build_here(sharded(scratch / "source"), f"oci:{scratch / 'out'}:v1", scratch)
    return resolve_model(Layout(scratch / "out"), "v1").record


def document(published: Publication, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(published.manifest(tag).data)
    return found


def config(published: Publication) -> dict[str, Any]:
    digest = document(published, "v1-modelpack")["config"]["digest"]
    (data,) = [each.data for each in published.blobs if str(each.descriptor.digest) == digest]
    found: dict[str, Any] = json.loads(data)
    return found


def test_every_file_is_named_by_an_entry_of_the_layer_that_holds_it(record: Record) -> None:
    published = publication([record], version="v1")
    first, *layers = document(published, "v1-modelpack")["layers"]
    assert first["annotations"][FILEPATH] == "weightyard.json"
    assert json.loads(first["annotations"][METADATA])["size"] == len(record.to_bytes())
    named = [(entry["annotations"][FILEPATH], entry["digest"]) for entry in layers]
    assert sorted(named) == [(file.path, str(file.layer)) for file in record.files]
    # Some layer holds several files: its blob is listed for each of them.
    assert len({digest for _, digest in named}) < len(named)
    sizes = {file.path: file.size for file in record.files}
    for entry in layers:
        path = entry["annotations"][FILEPATH]
        assert json.loads(entry["annotations"][METADATA]) == {
            "name": path.rpartition("/")[2],
            "mode": 0o644,
            "uid": 0,
            "gid": 0,
            "size": sizes[path],
            "mtime": "1970-01-01T00:00:00Z",
            "typeflag": 48,
        }
    # One diff_id for each entry, as the model specification demands.
    assert config(published)["modelfs"]["diffIds"] == [
        entry["digest"] for entry in (first, *layers)
    ]


def test_an_image_of_very_many_files_names_only_those_with_a_layer_of_their_own(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelimage.publication._MAX_NAMED_FILES", len(record.files) - 1)
    held = {str(layer.digest): record.layer_files(layer.digest) for layer in record.layers}
    _, *layers = document(publication([record], version="v1"), "v1-modelpack")["layers"]
    assert len(layers) == len(held)
    for entry in layers:
        assert (FILEPATH in entry["annotations"]) == (len(held[entry["digest"]]) == 1)


def test_container_images_carry_no_annotations_of_modelpack(record: Record) -> None:
    published = publication([record], version="v1")
    image = document(published, "v1")["manifests"][0]["digest"]
    (data,) = [e.data for e in published.manifests if str(e.descriptor.digest) == image]
    assert not any(FILEPATH in layer["annotations"] for layer in json.loads(data)["layers"])


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("hf://org/name", "https://huggingface.co/org/name"),
        ("hf://org/name@v1", "https://huggingface.co/org/name"),
        ("https://example.org/model", "https://example.org/model"),
        ("s3://bucket/model", None),
        ("gs://bucket/model", None),
        ("mlflow:model/3", None),
        ("a folder", None),
        ("", None),
    ],
)
def test_the_source_is_a_url_or_absent(record: Record, uri: str, url: str | None) -> None:
    assert source_url(uri) == (url or "")
    published = publication([replace(record, source=uri)], version="v1")
    assert config(published)["descriptor"].get("sourceURL") == url

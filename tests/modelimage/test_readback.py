"""An image is read back before it is published: what nodes would refuse is refused here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from builder.publish import LayerSource, send, set_tags
from builder.reporter import Silent
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.hasher import hash_layer
from modelimage.layout import Layout
from modelimage.publication import Publication, publication
from modelimage.readback import check_publication, check_readable
from modelimage.recipe import LayerFile, layer_recipe
from modelimage.record import ModelFacts, Record, RecordFile, RecordLayer, Role
from tests.builder.building import weightyard_here


def published(
    directory: Path, files: dict[str, bytes], variants: tuple[str, ...]
) -> tuple[Publication, LayerSource]:
    """A publication of these files, each at a path of its own here, whatever its path in the image is."""
    locations = {}
    for number, (path, data) in enumerate(files.items()):
        locations[path] = directory / str(number)
        locations[path].write_bytes(data)
    listed = [LayerFile(path, len(data), Digest.of(data)) for path, data in sorted(files.items())]
    recipe = layer_recipe(listed)
    digests = hash_layer(recipe, locations.__getitem__)
    layer = RecordLayer(digests.digest, recipe.size, Role.WEIGHT)
    held = tuple(
        RecordFile(
            each.path,
            each.size,
            each.digest,
            Role.WEIGHT,
            layer.digest,
            digests.files[each.path].chunks,
        )
        for each in listed
    )
    records = [Record(name, "local", "", "", ModelFacts(), held, (layer,)) for name in variants]
    return publication(records, version="v1"), LayerSource(recipe, locations)


BAD = {
    "both file and folder": {"a": b"x", "a/b": b"y"},
    "two slashes": {"a//b": b"y"},
    "a control character": {"a\nb": b"y"},
    "reserved": {"models/a": b"y"},
}


@pytest.mark.parametrize("files", BAD.values(), ids=BAD)
@pytest.mark.parametrize("variants", [("bf16",), ("bf16", "int8")])
def test_a_publication_that_nodes_refuse_is_refused(
    tmp_path: Path, files: dict[str, bytes], variants: tuple[str, ...]
) -> None:
    planned, _ = published(tmp_path, files, variants)
    with pytest.raises(InvalidImage):
        check_publication(planned)


def test_a_publication_that_nodes_pull_passes(tmp_path: Path) -> None:
    check_publication(published(tmp_path, {"a": b"x", "b/c": b"y"}, ("bf16", "int8"))[0])


def test_a_manifest_without_a_layer_of_its_record_is_refused(tmp_path: Path) -> None:
    planned, _ = published(tmp_path, {"a": b"x"}, ("bf16",))
    (layer,) = planned.layers
    stranger = Digest.of(b"stranger")
    damaged = []
    for manifest in planned.manifests:
        data = manifest.data.replace(str(layer.digest).encode(), str(stranger).encode())
        # Under the old digest: the check reads documents, whose digests are others' to verify.
        damaged.append(dataclasses.replace(manifest, data=data))
    with pytest.raises(InvalidImage, match="doesn't describe its layers"):
        check_publication(dataclasses.replace(planned, manifests=tuple(damaged)))


def test_an_image_that_nodes_refuse_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    planned, source = published(tmp_path, {"a": b"x", "a/b": b"y"}, ("bf16",))
    layout = Layout(tmp_path / "from")
    send(planned, {planned.layers[0].digest: source}, layout, Silent())
    set_tags(planned, layout)
    with pytest.raises(InvalidImage):
        check_readable(layout, layout.resolve("v1"))
    outcome = weightyard_here(capsys, "copy", f"oci:{tmp_path}/from:v1", f"oci:{tmp_path}/to:v1")
    assert outcome.code == 15, outcome.err
    assert not (tmp_path / "to").exists()

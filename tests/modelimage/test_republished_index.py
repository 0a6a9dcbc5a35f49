"""An index of ours as other tools leave it: without annotations, in another order, with others' images, or in part."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from builder.build import BuildOptions, BuildResult
from modelimage import mediatypes
from modelimage.descriptor import LINUX_ARM64, Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound, UnknownVariant
from modelimage.resolve import resolve_ours
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import quantizable
from tests.modelimage.foreign.images import OCI_TAR, Maker, files_tar

# An entry of an index, a manifest, or an index, as JSON.
Json = dict[str, Any]
Change = Callable[[Maker, list[Json]], list[Json]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildResult]:
    scratch = tmp_path_factory.mktemp("republished")
    options = BuildOptions(variants=("bf16", "int8"))
    source = quantizable(scratch / "model")
    return scratch / "out", build_here(source, f"oci:{scratch / 'out'}:v1", scratch, options)


def read(maker: Maker, entry: Json) -> Json:
    descriptor = Descriptor.from_json(entry)
    document: Json = json.loads(maker.layout.manifest(descriptor))
    return document


def written(maker: Maker, document: Json, tag: str | None = None) -> Json:
    data = json.dumps(document).encode()
    descriptor = Descriptor(document["mediaType"], Digest.of(data), len(data))
    maker.layout.put_manifest(descriptor, data, tag)
    return descriptor.to_json()


def bare(maker: Maker, entries: list[Json]) -> list[Json]:
    """No annotations: of the index's entries, the manifests, or their layers."""
    found = []
    for entry in entries:
        manifest = read(maker, entry)
        manifest.pop("annotations", None)
        for layer in manifest["layers"]:
            layer.pop("annotations", None)
        kept = {name: entry[name] for name in ("platform",) if name in entry}
        found.append(written(maker, manifest) | kept)
    return found


def compressed(maker: Maker, entries: list[Json]) -> list[Json]:
    """As `bare`, and the platforms' images have gzip layers, as tools make them that know no ModelPack."""
    found = []
    for entry in bare(maker, entries):
        manifest = read(maker, entry)
        if entry["platform"]["os"] == "linux":
            layers = [Descriptor.from_json(layer) for layer in manifest["layers"]]
            blobs = [maker.layout.blob_path(layer.digest).read_bytes() for layer in layers]
            packed = [maker.blob(f"{OCI_TAR}+gzip", gzip.compress(blob)) for blob in blobs]
            manifest["layers"] = [each.to_json() for each in packed]
        found.append(written(maker, manifest) | {"platform": entry["platform"]})
    return found


def strangers(maker: Maker, entries: list[Json]) -> list[Json]:
    """Others' images before ours: one for another platform, and an artifact of no platform."""
    image = maker.image(files_tar({"a.txt": b"x"}), tag=None).to_json()
    note = maker.manifest(
        maker.json(mediatypes.OCI_EMPTY, {}), [maker.blob("text/plain", b"x")], tag=None
    )
    platform = {"os": "linux", "architecture": "s390x"}
    return [image | {"platform": platform}, note.to_json(), *entries]


CHANGES: Final[dict[str, Change]] = {
    "annotations dropped": bare,
    "dropped, in reverse order": lambda maker, entries: bare(maker, entries[::-1]),
    "dropped, and platforms too": lambda maker, entries: [
        {name: each for name, each in entry.items() if name != "platform"} for entry in bare(maker, entries)
    ],
    "dropped, images compressed": compressed,
    "beside strangers": strangers,
    "dropped, beside strangers": lambda maker, entries: strangers(maker, bare(maker, entries)),
    "in part": lambda maker, entries: entries,
    "dropped, in part": bare,
}  # fmt: skip


def republished(built: tuple[Path, BuildResult], directory: Path, name: str) -> Maker:
    shutil.copytree(built[0], directory)
    maker = Maker(directory)
    index = read(maker, maker.layout.resolve("v1").to_json())
    index["manifests"] = CHANGES[name](maker, index["manifests"])
    if "dropped" in name:
        index.pop("annotations", None)
    written(maker, index, "v2")
    # As mirrors copy images: the index as it is, and the manifests of some platforms only.
    for entry in index["manifests"] if "in part" in name else ():
        if entry["platform"]["architecture"] == "amd64":
            maker.layout.blob_path(Digest.parse(entry["digest"])).unlink()
    return maker


@pytest.mark.parametrize("name", CHANGES)
def test_every_variant_is_found_by_its_record(
    built: tuple[Path, BuildResult], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = republished(built, tmp_path / "made", name)
    root = maker.layout.resolve("v2")
    default, quantized = built[1].records
    for variant, record in ((None, default), ("bf16", default), ("int8", quantized)):
        found = resolve_ours(maker.layout, root, variant)
        assert found is not None
        assert (found.record, found.variants) == (record, ("bf16", "int8"))
    with pytest.raises(UnknownVariant, match="it has: bf16, int8"):
        resolve_ours(maker.layout, root, "int4")
    if "in part" in name:
        return
    image, copy = f"oci:{tmp_path / 'made'}:v2", f"oci:{tmp_path / 'copy'}:v2"
    for command in (("copy", image, copy), ("verify", copy)):
        outcome = weightyard_here(capsys, *command)
        assert outcome.code == 0, outcome.err
    pulled = weightyard_here(
        capsys, "--json", "pull", copy, "--variant", "int8", "--root", tmp_path / "cache"
    )
    assert pulled.json["key"] == str(quantized.key)


@pytest.mark.parametrize("name", ["in part", "dropped, in part"])
def test_without_any_of_its_manifests_it_is_no_other_tools_image(
    built: tuple[Path, BuildResult], tmp_path: Path, name: str
) -> None:
    """So a registry that answers 404 for a moment doesn't have the model cached under another key."""
    maker = republished(built, tmp_path / "made", name)
    root = maker.layout.resolve("v2")
    for entry in read(maker, root.to_json())["manifests"]:
        maker.layout.blob_path(Digest.parse(entry["digest"])).unlink(missing_ok=True)
    with pytest.raises(NotFound):
        resolve_ours(maker.layout, root)


def test_another_platform_s_manifest_will_do(
    built: tuple[Path, BuildResult], tmp_path: Path
) -> None:
    maker = republished(built, tmp_path / "made", "dropped, in part")
    found = resolve_ours(maker.layout, maker.layout.resolve("v2"), platform=LINUX_ARM64)
    assert found is not None
    assert found.record == built[1].records[0]


@pytest.mark.parametrize("first", [True, False])
def test_what_is_malformed_beside_an_image_does_not_hide_it(tmp_path: Path, first: bool) -> None:
    maker = Maker(tmp_path)
    sound = maker.image(files_tar({"a.txt": b"x"}), tag=None)
    broken = maker.blob(mediatypes.OCI_MANIFEST, b'{"layers": 7}')
    root = maker.index([broken, sound] if first else [sound, broken])
    if not first:
        assert resolve_ours(maker.layout, root) is None
        return
    # The one that would be pulled.
    with pytest.raises(InvalidImage, match="no list of layers"):
        resolve_ours(maker.layout, root)


def test_an_image_that_is_gone_is_missing(tmp_path: Path) -> None:
    maker = Maker(tmp_path)
    root = maker.image(files_tar({"a.txt": b"x"}))
    maker.layout.blob_path(root.digest).unlink()
    with pytest.raises(NotFound):
        resolve_ours(maker.layout, root)

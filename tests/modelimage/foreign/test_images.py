"""Plain images as models, made by hand: modelcars, links, indexes, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from modelimage.descriptor import (
    LINUX_AMD64,
    LINUX_ARM64,
    UNKNOWN_PLATFORM,
    Descriptor,
    Platform,
)
from modelimage.errors import InvalidImage, NotFound
from modelimage.foreign import ImageFormat, Packing, describe_foreign
from modelimage.foreign.detect import ForeignManifest
from modelimage.mediatypes import DOCKER_MANIFEST
from modelimage.resolve import list_models
from tests.modelimage.foreign.describing import (
    FILES,
    PACKINGS,
    SOME,
    check_pull,
    described,
    entries,
)
from tests.modelimage.foreign.images import (
    DOCKER_CONFIG,
    DOCKER_TAR,
    Maker,
    directory,
    files_tar,
    on,
    symlink,
    tar,
)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_modelcar(maker: Maker, packing: Packing) -> None:
    base = tar([directory("etc"), *entries({"etc/passwd": b"root"}), symlink("bin", "usr/bin")])
    car = tar([directory("models"), *entries({f"models/{p}": data for p, data in FILES.items()})])
    maker.image(base, car, packing=packing)
    model = described(maker)
    assert model.kind is ImageFormat.IMAGE
    check_pull(maker, model, FILES)


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_image_of_docker_media_types(maker: Maker, packing: Packing) -> None:
    maker.image(
        files_tar(FILES),
        packing=packing,
        base=DOCKER_TAR,
        config_type=DOCKER_CONFIG,
        mediaType=DOCKER_MANIFEST,
    )
    check_pull(maker, described(maker), FILES)


def test_an_image_whose_models_are_a_link(maker: Maker) -> None:
    files = entries({"opt/weights/a.gguf": b"1"})
    maker.image(tar([*files, symlink("models", "/opt/weights")]))
    check_pull(maker, described(maker), {"a.gguf": b"1"})


def test_an_image_with_the_cache_as_the_hub_lays_it_out(maker: Maker) -> None:
    maker.image(
        tar(
            [
                *entries({"models/blobs/abc": b"weights"}),
                symlink("models/snapshots/1/model.safetensors", "../../blobs/abc"),
            ]
        )
    )
    check_pull(
        maker,
        described(maker),
        {"blobs/abc": b"weights", "snapshots/1/model.safetensors": b"weights"},
    )


def test_an_image_that_holds_our_own_record(maker: Maker) -> None:
    maker.image(files_tar({"weightyard.json": b"{}", "a.gguf": b"1"}))
    model = described(maker)
    assert [file.path for file in model.files] == ["a.gguf"]
    assert "weightyard.json" in model.left_out


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 1, "fsLayers": []},
        {"schemaVersion": 2},
        {"schemaVersion": 2, "config": {}, "layers": []},
        {"schemaVersion": 2, "config": SOME, "layers": []},
        {"schemaVersion": 2, "config": SOME, "layers": [{}]},
        {"schemaVersion": 2, "config": {}, "layers": "none"},
    ],
)
def test_a_manifest_that_is_none(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage):
        ForeignManifest.parse(document)


def test_an_image_with_a_layer_that_is_no_tar(maker: Maker) -> None:
    good = maker.image(files_tar({"a": b"1"}))
    config = maker.json("application/vnd.oci.image.config.v1+json", {})
    odd = [maker.blob("application/vnd.oci.image.layer.v1.squashfs", b"x")]
    maker.manifest(config, odd, tag="odd")
    with pytest.raises(InvalidImage):
        described(maker, "odd")
    assert described(maker).manifest == good


@pytest.mark.parametrize(
    ("titled", "kind"), [(False, ImageFormat.IMAGE), (True, ImageFormat.ARTIFACT)]
)
def test_image_layers_below_a_config_nobody_knows(
    maker: Maker, titled: bool, kind: ImageFormat
) -> None:
    title = {"org.opencontainers.image.title": "a.gguf"} if titled else {}
    layer = maker.blob("application/vnd.oci.image.layer.v1.tar", files_tar({"a.gguf": b"1"}), title)
    maker.manifest(maker.json("application/vnd.example.config+json", {}), [layer])
    model = described(maker)
    assert model.kind is kind
    assert [file.size for file in model.files] == [layer.size if titled else 1]


def test_an_image_without_files(maker: Maker) -> None:
    maker.image(tar([directory("empty")]))
    with pytest.raises(InvalidImage, match="no files"):
        described(maker)


def test_the_platform_decides(maker: Maker) -> None:
    amd, arm = (maker.image(files_tar({"a": data}), tag=None) for data in (b"amd", b"arm"))
    root = maker.index([on(arm, LINUX_ARM64), on(amd, LINUX_AMD64)])
    for platform, manifest in ((LINUX_AMD64, amd), (LINUX_ARM64, arm)):
        model = describe_foreign(maker.layout, root, platform=platform)
        assert model.key == manifest.digest
        assert model.root == root


def test_attestations_are_passed_over(maker: Maker) -> None:
    model = maker.image(files_tar({"a": b"1"}), tag=None)
    attestation = maker.image(files_tar({"b": b"1"}), tag=None)
    annotated = Descriptor(
        attestation.media_type,
        attestation.digest,
        attestation.size,
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
        platform=UNKNOWN_PLATFORM,
    )
    root = maker.index([annotated, on(model, LINUX_ARM64)])
    assert describe_foreign(maker.layout, root).key == model.digest


def test_nested_indexes(maker: Maker) -> None:
    model = maker.image(files_tar({"a": b"1"}), tag=None)
    inner = maker.index([on(model, LINUX_AMD64)], tag=None)
    root = maker.index([inner])
    assert describe_foreign(maker.layout, root).key == model.digest


def test_an_index_that_lists_nothing_at_all(maker: Maker) -> None:
    data = b'{"manifests": null}'
    broken = maker.blob("application/vnd.oci.image.index.v1+json", data)
    with pytest.raises(InvalidImage, match="no list"):
        describe_foreign(maker.layout, broken)


@pytest.mark.parametrize(("depth", "taken"), [(4, True), (5, False)])
def test_a_pull_and_a_listing_take_indexes_of_the_same_depth(
    maker: Maker, depth: int, taken: bool
) -> None:
    root = maker.image(files_tar({"config.json": b"{}"}), tag=None)
    for _ in range(depth):
        root = maker.index([root])
    for reads in (
        lambda: describe_foreign(maker.layout, root).files,
        lambda: list_models(maker.layout, root),
    ):
        if taken:
            assert reads()
            continue
        with pytest.raises(InvalidImage, match="nest deeper"):
            reads()


def test_indexes_nested_without_end(maker: Maker) -> None:
    found = maker.image(files_tar({"a": b"1"}), tag=None)
    for _ in range(6):
        found = maker.index([found])
    with pytest.raises(InvalidImage, match="nest"):
        describe_foreign(maker.layout, found)


def test_no_platform_fits(maker: Maker) -> None:
    images = [maker.image(files_tar({"a": data}), tag=None) for data in (b"1", b"2")]
    windows = Platform("windows", "amd64")
    root = maker.index([on(images[0], LINUX_ARM64), on(images[1], windows)])
    with pytest.raises(NotFound, match="linux/amd64") as caught:
        describe_foreign(maker.layout, root)
    assert caught.value.hint is not None
    assert "windows/amd64" in caught.value.hint

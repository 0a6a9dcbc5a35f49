"""Each kind of foreign artifact, made by hand: detected, mapped, pulled whole and by ranges."""

from __future__ import annotations

from typing import Any

import pytest

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.foreign import ForeignModel, ImageFormat, Packing
from modelimage.mediatypes import MODELPACK_MANIFEST, OCI_EMPTY
from modelimage.record import Role
from tests.modelimage.foreign.describing import FILES, PACKINGS, check_pull, described, entries
from tests.modelimage.foreign.images import Maker, compress, directory, files_tar, hardlink, tar

MODELPACK = "application/vnd.cncf.model"
KITOPS = "application/vnd.kitops.modelkit"
DOCKER = "application/vnd.docker.ai"


def modelpack(
    maker: Maker,
    layers: list[Descriptor],
    *,
    diff_ids: str = "diffIds",
    ids: list[Digest] | None = None,
) -> Descriptor:
    known = ids if ids is not None else [layer.digest for layer in layers]
    config = {
        "descriptor": {},
        "config": {},
        "modelfs": {"type": "layers", diff_ids: [str(each) for each in known]},
    }
    return maker.manifest(
        maker.json(f"{MODELPACK}.config.v1+json", config), layers, artifactType=MODELPACK_MANIFEST
    )


# ModelPack


@pytest.mark.parametrize("diff_ids", ["diffIds", "diff_ids"])
@pytest.mark.parametrize("family", ["cncf", "cnai"])
def test_modelpack_raw(maker: Maker, diff_ids: str, family: str) -> None:
    layers = [
        maker.blob(
            f"application/vnd.{family}.model.{content}.v1.raw",
            data,
            {f"org.{family}.model.filepath": path},
        )
        for content, path, data in (
            ("weight", "model.safetensors", b"weights"),
            ("weight.config", "tokenizer.json", b"{}"),
            ("weight.config", "config.json", b"{ }"),
            ("doc", "docs/README.md", b""),
        )
    ]
    modelpack(maker, layers, diff_ids=diff_ids)
    model = described(maker)
    assert model.kind is ImageFormat.MODELPACK
    assert model.is_listed
    assert {file.path: file.role for file in model.files} == {
        "model.safetensors": Role.WEIGHT,
        "tokenizer.json": Role.TOKENIZER,
        "config.json": Role.CONFIG,
        "docs/README.md": Role.DOC,
    }
    assert [file.digest for file in model.files if file.path == "model.safetensors"] == [
        Digest.of(b"weights")
    ]
    check_pull(
        maker,
        model,
        {
            "model.safetensors": b"weights",
            "tokenizer.json": b"{}",
            "config.json": b"{ }",
            "docs/README.md": b"",
        },
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_modelpack_tar(maker: Maker, packing: Packing) -> None:
    archive = files_tar(FILES)
    layer = maker.blob(f"{MODELPACK}.weight.v1.{packing.value}", compress(archive, packing))
    modelpack(maker, [layer], ids=[Digest.of(archive)])
    model = described(maker)
    assert model.is_listed is (packing is Packing.TAR)
    check_pull(maker, model, FILES)


def test_modelpack_data_sets_stay_out(maker: Maker) -> None:
    path = {"org.cncf.model.filepath": "train.csv"}
    layers = [
        maker.blob(f"{MODELPACK}.dataset.v1.raw", b"1,2", path),
        maker.blob(f"{MODELPACK}.weight.v1.raw", b"w", {"org.cncf.model.filepath": "w.gguf"}),
    ]
    modelpack(maker, layers)
    model = described(maker)
    assert [file.path for file in model.files] == ["w.gguf"]
    assert model.left_out == {"train.csv": "a data set"}


def test_modelpack_names_no_path_twice(maker: Maker) -> None:
    path = {"org.cncf.model.filepath": "a.gguf"}
    layers = [maker.blob(f"{MODELPACK}.weight.v1.raw", data, path) for data in (b"1", b"2")]
    modelpack(maker, layers)
    with pytest.raises(InvalidImage, match="twice"):
        described(maker)


def test_modelpack_may_repeat_itself(maker: Maker) -> None:
    layer = maker.blob(f"{MODELPACK}.weight.v1.raw", b"1", {"org.cncf.model.filepath": "a.gguf"})
    again = maker.blob(f"{MODELPACK}.weight.v1.raw", b"1", {"org.cncf.model.filepath": "b.gguf"})
    modelpack(maker, [layer, layer, again])
    check_pull(maker, described(maker), {"a.gguf": b"1", "b.gguf": b"1"})


@pytest.mark.parametrize(
    ("media_type", "annotations"),
    [
        (f"{MODELPACK}.weight.v1.raw", {}),
        (f"{MODELPACK}.weight.v1.lz4", {"org.cncf.model.filepath": "a"}),
        ("application/octet-stream", {"org.cncf.model.filepath": "a"}),
        *(
            (f"{MODELPACK}.weight.v1.raw", {"org.cncf.model.filepath": path})
            for path in ("../a", "/etc/passwd", "a/../../b", "a\\b", "a\nb", "..", "a//b")
        ),
    ],
)
def test_modelpack_that_makes_no_sense(
    maker: Maker, media_type: str, annotations: dict[str, str]
) -> None:
    modelpack(maker, [maker.blob(media_type, b"data", annotations)])
    with pytest.raises(InvalidImage):
        described(maker)


@pytest.mark.parametrize("ids", [[Digest.of(b"other")], [Digest.of(b"w")] * 2])
def test_diff_ids_that_contradict_the_layers(maker: Maker, ids: list[Digest]) -> None:
    layer = maker.blob(f"{MODELPACK}.weight.v1.raw", b"w", {"org.cncf.model.filepath": "a"})
    modelpack(maker, [layer], ids=ids)
    with pytest.raises(InvalidImage):
        described(maker)


# KitOps


def kit(maker: Maker, kitfile: dict[str, Any], layers: list[Descriptor]) -> ForeignModel:
    maker.manifest(maker.json(f"{KITOPS}.config.v1+json", kitfile), layers)
    return described(maker)


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_GZIP])
def test_a_modelkit_of_today(maker: Maker, packing: Packing) -> None:
    weights = files_tar({"models/llm.gguf": b"weights"})
    part = files_tar({"lora/adapter.gguf": b"adapter"})
    docs = files_tar({"README.md": b"read"})
    data = files_tar({"train.csv": b"1"})
    types = {"model": weights, "modelpart": part, "docs": docs, "dataset": data}
    layers = {
        name: maker.blob(f"{KITOPS}.{name}.v1.{packing.value}", compress(each, packing))
        for name, each in types.items()
    }

    def info(name: str, path: str) -> dict[str, str]:
        return {
            "path": path,
            "digest": str(layers[name].digest),
            "diffId": str(Digest.of(types[name])),
        }

    kitfile = {
        "manifestVersion": "1.0.0",
        "model": {**info("model", "models"), "parts": [info("modelpart", "lora")]},
        "docs": [info("docs", "README.md")],
        "datasets": [info("dataset", "train.csv")],
    }
    model = kit(maker, kitfile, list(layers.values()))
    assert model.kind is ImageFormat.KITOPS
    assert model.left_out == {"train.csv": "a data set"}
    files = {
        "models/llm.gguf": b"weights",
        "lora/adapter.gguf": b"adapter",
        "README.md": b"read",
    }
    listed = check_pull(maker, model, files)
    assert {file.path: file.role for file in listed.files} == {
        "models/llm.gguf": Role.WEIGHT,
        "lora/adapter.gguf": Role.WEIGHT,
        "README.md": Role.DOC,
    }


def test_a_modelkit_of_old_holds_paths_below_its_entry(maker: Maker) -> None:
    weights = tar(
        [directory("llm"), *entries({"llm/a.gguf": b"1"}), hardlink("llm/b.gguf", "llm/a.gguf")]
    )
    layer = maker.blob(f"{KITOPS}.model.v1.tar+gzip", compress(weights, Packing.TAR_GZIP))
    model = kit(maker, {"model": {"path": "./models/llm"}}, [layer])
    check_pull(maker, model, {"models/llm/a.gguf": b"1", "models/llm/b.gguf": b"1"})


def test_a_modelkit_on_another(maker: Maker) -> None:
    code = maker.blob(f"{KITOPS}.code.v1.tar", files_tar({"run.py": b"1"}))
    kitfile = {"model": {"path": "ghcr.io/a/b:1"}, "code": [{"path": "run.py"}]}
    model = kit(maker, kitfile, [code])
    assert "ghcr.io/a/b:1" in model.left_out["model"]


@pytest.mark.parametrize(
    "kitfile",
    [
        {"model": {"path": "../../etc/x", "name": "escape"}},
        {"model": {"path": "a", "digest": str(Digest.of(b"other"))}},
        {"model": {"path": "a", "digest": "rubbish"}},
        {"model": {"path": "a", "diffId": "rubbish"}},
    ],
)
def test_a_kitfile_that_contradicts_its_layer(maker: Maker, kitfile: dict[str, Any]) -> None:
    with pytest.raises(InvalidImage):
        kit(maker, kitfile, [maker.blob(f"{KITOPS}.model.v1.tar", files_tar({"a": b"1"}))])


def test_a_kitfile_without_an_entry_for_a_layer(maker: Maker) -> None:
    with pytest.raises(InvalidImage, match="no entry"):
        kit(maker, {"code": "x"}, [maker.blob(f"{KITOPS}.code.v1.tar", files_tar({"a": b"1"}))])


# Docker's model artifacts


def docker_model(maker: Maker, version: str, layers: list[Descriptor]) -> ForeignModel:
    config = {
        "config": {"format": "gguf"},
        "rootfs": {"type": "rootfs", "diff_ids": [str(layer.digest) for layer in layers]},
    }
    maker.manifest(maker.json(f"{DOCKER}.model.config.{version}+json", config), layers)
    return described(maker)


def test_a_docker_model_of_version_01(maker: Maker) -> None:
    layers = [
        maker.blob(f"{DOCKER}.gguf.v3", b"weights"),
        maker.blob(f"{DOCKER}.mmproj", b"eyes"),
        maker.blob(f"{DOCKER}.chat.template.jinja", b"{{ }}"),
        maker.blob(f"{DOCKER}.license", b"MIT"),
        maker.blob(f"{DOCKER}.license", b"and BSD"),
    ]
    model = docker_model(maker, "v0.1", layers)
    assert model.kind is ImageFormat.DOCKER_MODEL
    check_pull(
        maker,
        model,
        {
            "model.gguf": b"weights",
            "model.mmproj": b"eyes",
            "template.jinja": b"{{ }}",
            "LICENSE-00001-of-00002": b"MIT",
            "LICENSE-00002-of-00002": b"and BSD",
        },
    )


def test_a_docker_model_in_shards(maker: Maker) -> None:
    layers = [maker.blob(f"{DOCKER}.gguf.v3", data) for data in (b"one", b"two")]
    check_pull(
        maker,
        docker_model(maker, "v0.1", layers),
        {"model-00001-of-00002.gguf": b"one", "model-00002-of-00002.gguf": b"two"},
    )


def test_a_docker_model_of_version_02(maker: Maker) -> None:
    path = "org.cncf.model.filepath"
    layers = [
        maker.blob(f"{DOCKER}.safetensors", b"w", {path: "text_encoder/model.safetensors"}),
        maker.blob(f"{DOCKER}.model.file", b"{}", {path: "tokenizer.json"}),
        maker.blob(f"{DOCKER}.dir.tar", files_tar({"scheduler/config.json": b"{}"})),
    ]
    check_pull(
        maker,
        docker_model(maker, "v0.2", layers),
        {
            "text_encoder/model.safetensors": b"w",
            "tokenizer.json": b"{}",
            "scheduler/config.json": b"{}",
        },
    )


@pytest.mark.parametrize("content", ["model.file", "something.new"])
def test_a_docker_model_with_an_unknown_layer(maker: Maker, content: str) -> None:
    with pytest.raises(InvalidImage):
        docker_model(maker, "v0.1", [maker.blob(f"{DOCKER}.{content}", b"x")])


# Files pushed one by one


def test_an_artifact_of_files(maker: Maker) -> None:
    title = "org.opencontainers.image.title"
    gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
    folder = compress(files_tar({"extra/a.txt": b"a"}), Packing.TAR_GZIP)
    other = compress(files_tar({"more/b.txt": b"b"}), Packing.TAR_GZIP)
    layers = [
        # oras says tar of a file whose type it doesn't know
        maker.blob("application/vnd.oci.image.layer.v1.tar", b"GGUF", {title: "model.gguf"}),
        maker.blob(gzipped, folder, {title: "extra", "io.deis.oras.content.unpack": "true"}),
        # the Python client's way with directories
        maker.blob(gzipped, other, {title: "and/more"}),
        maker.blob(gzipped, b"kept", {title: "kept.tar.gz"}),
        maker.blob("application/octet-stream", b"?"),
    ]
    maker.manifest(maker.blob(OCI_EMPTY, b"{}"), layers, artifactType="application/vnd.example")
    model = described(maker)
    assert model.kind is ImageFormat.ARTIFACT
    check_pull(
        maker,
        model,
        {
            "model.gguf": b"GGUF",
            "extra/a.txt": b"a",
            "and/more/b.txt": b"b",
            "kept.tar.gz": b"kept",
        },
    )
    assert list(model.left_out) == [str(layers[-1].digest)]


def test_an_artifact_without_any_file_name(maker: Maker) -> None:
    maker.manifest(maker.blob(OCI_EMPTY, b"{}"), [maker.blob("application/json", b"{}")])
    with pytest.raises(InvalidImage, match="no model files"):
        described(maker)

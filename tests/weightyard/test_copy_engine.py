"""Loading into an engine that speaks docker's API: podman's, through the docker SDK."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from modelimage.descriptor import Platform
from modelimage.digest import Digest
from modelimage.docker_engine import DockerEngine, archive, image_for
from modelimage.errors import DigestMismatch, InvalidImage, NotFound, Unreachable
from modelimage.layout import Layout
from modelimage.resolve import resolve_model
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import quantizable, single
from tests.servers.base_image import base_layout
from tests.servers.podman import Podman

AMD64 = Platform("linux", "amd64")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("engine")
    build_here(single(scratch / "source"), f"oci:{scratch / 'layout'}:v1", scratch)
    return scratch / "layout"


@pytest.mark.servers
def test_an_engine_has_the_image_with_the_same_files(
    built: Path,
    podman: Podman,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    with podman.docker_api() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        loaded = weightyard_here(
            capsys, "--json", "copy", f"oci:{built}:v1", "docker:engine-model:v1"
        )
    assert loaded.code == 0, loaded.err
    assert loaded.json["destination"] == "docker:engine-model:v1"
    model = resolve_model(Layout(built), "v1")
    name = next(name for name in podman.images() if name.endswith("engine-model:v1"))
    assert podman.podman("image", "inspect", "--format", "{{.Id}}", name).strip() in str(
        loaded.json["digest"]
    )
    with podman.mounted(name) as root:
        for file in model.record.files:
            assert Digest.of((root / file.path).read_bytes()) == file.digest
            assert (root / "models" / file.path).exists()


def test_what_is_no_container_image_is_not_loaded(built: Path) -> None:
    layout = Layout(built)
    with pytest.raises(InvalidImage, match="a container image"):
        image_for(layout, layout.resolve("v1-modelpack"), AMD64)
    with pytest.raises(NotFound, match="linux/riscv64"):
        image_for(layout, layout.resolve("v1"), Platform("linux", "riscv64"))


def test_a_damaged_layer_breaks_the_stream_before_its_end(built: Path, tmp_path: Path) -> None:
    layout = Layout(built)
    image = image_for(layout, layout.resolve("v1"), AMD64)
    sound = b"".join(archive(layout, image, ["m:v1"], lambda _: None))
    path = layout.blob_path(image.layers[-1].digest)
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1] + b"!")
        seen = bytearray()
        pieces = archive(layout, image, ["m:v1"], lambda _: None)
        with pytest.raises(DigestMismatch):
            seen.extend(itertools.chain.from_iterable(pieces))
    finally:
        path.write_bytes(data)
    assert sound.startswith(bytes(seen))
    assert data[-600:] not in seen[-700:]


def test_an_engine_that_is_not_there_says_how_to_name_one(
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    with pytest.raises(Unreachable, match="docker engine"):
        DockerEngine({"DOCKER_HOST": f"unix://{tmp_path}/absent.sock"})
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    failed = weightyard_here(capsys, "copy", f"oci:{built}:v1", "docker:m")
    assert (failed.code, "DOCKER_HOST" in failed.err) == (11, True)
    refused = weightyard_here(capsys, "copy", f"oci:{built}:v1", "docker:m", "--all-tags")
    assert refused.code == 2


@pytest.mark.servers
def test_a_build_loads_each_variant_into_an_engine(
    tmp_path: Path,
    podman: Podman,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    """No layout, no registry: the same image under the same digests, the base's layers among it."""
    base = base_layout(tmp_path / "base")
    source = quantizable(tmp_path / "source")
    options = ("--variant", "int8", "--engine", "rtn", "--base", f"oci:{base}:v1")
    with podman.docker_api() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        built = weightyard_here(
            capsys, "--json", "build", source, "--to", "docker:built-here:v1", *options
        )
    assert built.code == 0, built.err
    same = weightyard_here(
        capsys, "--json", "build", source, "--to", f"oci:{tmp_path}/out:v1", *options
    )
    assert built.json["digest"] == same.json["digest"]
    assert built.json["sent"] > 0
    loaded = [name for name in podman.images() if "built-here" in name]
    assert sorted(name.rpartition(":")[2] for name in loaded) == ["v1", "v1-int8"]
    layout = Layout(tmp_path / "out")
    for name in loaded:
        tag = name.rpartition(":")[2]
        with podman.mounted(name) as root:
            assert (root / "bin/sh").exists()
            for file in resolve_model(layout, tag).record.files:
                assert Digest.of((root / "models" / file.path).read_bytes()) == file.digest


def test_a_build_asks_for_the_engine_before_it_reads(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    failed = weightyard_here(capsys, "build", single(tmp_path / "source"), "--to", "docker:m")
    assert (failed.code, "DOCKER_HOST" in failed.err) == (11, True)
    assert not (home / ".cache/weightyard/digests").exists()

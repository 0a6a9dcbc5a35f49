"""Loading into an engine that speaks docker's API: podman's, through the docker SDK."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from modelimage.descriptor import Platform
from modelimage.digest import Digest
from modelimage.engine import Engine, archive, image_for
from modelimage.errors import DigestMismatch, InvalidImage, NotFound, Unreachable
from modelimage.layout import Layout
from modelimage.resolve import resolve_model
from tests.builder.building import build_here, weightyard_here
from tests.builder.checkpoints import single
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
    with pytest.raises(InvalidImage, match="no container image"):
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
        Engine({"DOCKER_HOST": f"unix://{tmp_path}/absent.sock"})
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    failed = weightyard_here(capsys, "copy", f"oci:{built}:v1", "docker:m")
    assert (failed.code, "DOCKER_HOST" in failed.err) == (11, True)
    refused = weightyard_here(capsys, "copy", f"oci:{built}:v1", "docker:m", "--all-tags")
    assert refused.code == 2

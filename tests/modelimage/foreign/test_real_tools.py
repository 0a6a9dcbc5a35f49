"""Images that real tools made: buildah, skopeo, umoci and oras. Built here, then described and pulled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from oras.client import OrasClient

from modelimage.access import Access, open_reader
from modelimage.foreign import ImageFormat, Packing, describe_foreign
from modelimage.layout import Layout
from modelimage.reference import parse_registry
from tests.modelimage.foreign.images import pull, pull_ranges
from tests.servers.process import child_environment, program, run
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 9000, "sub/tokenizer.json": b"[]"}


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., str]:
    """Run a program in a home of the test's own."""
    home = tmp_path / "home"
    home.mkdir()
    policy = home / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def call(name: str, *arguments: str) -> str:
        environment = child_environment(home, BUILDAH_ISOLATION="chroot")
        return run([program(name), *arguments], environment=environment)

    return call


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return directory


def pulled(directory: Path, name: str = "latest") -> dict[str, bytes]:
    layout = Layout(directory)
    return pull(layout, describe_foreign(layout, layout.resolve(name)))[1]


@pytest.fixture
def modelcar(tmp_path: Path, tool: Callable[..., str]) -> Path:
    """A layout with a modelcar of two layers, as buildah builds it: uncompressed, a file replaced, another removed."""
    context = write(tmp_path / "context", {**FILES, "model.safetensors": b"old", "gone.txt": b"x"})
    write(tmp_path / "context2", {"model.safetensors": FILES["model.safetensors"]})
    storage = [
        "--root",
        str(tmp_path / "root"),
        "--runroot",
        str(tmp_path / "run"),
        "--storage-driver",
        "vfs",
    ]
    policy = ["--signature-policy", str(tmp_path / "home/policy.json")]

    def buildah(*arguments: str) -> str:
        return tool("buildah", *storage, *arguments).strip()

    base = buildah("from", *policy, "scratch")
    buildah("copy", base, str(context), "/models")
    buildah("commit", *policy, "--disable-compression", base, "base:latest")
    second = buildah("from", *policy, "--pull-never", "base:latest")
    buildah("copy", second, str(tmp_path / "context2"), "/models")
    mounted = Path(buildah("mount", second))
    (mounted / "models/gone.txt").unlink()
    (mounted / "models/link.safetensors").symlink_to("model.safetensors")
    buildah("umount", second)
    out = tmp_path / "out"
    buildah("commit", *policy, "--disable-compression", second, f"oci:{out}:latest")
    buildah("rm", "--all")
    return out


CAR = {**FILES, "link.safetensors": FILES["model.safetensors"]}


def test_a_modelcar_of_buildah(modelcar: Path) -> None:
    layout = Layout(modelcar)
    model = describe_foreign(layout, layout.resolve("latest"))
    assert model.kind is ImageFormat.IMAGE
    assert len(model.layers) == 2
    assert pulled(modelcar) == CAR
    assert pull_ranges(layout, model) == CAR


@pytest.mark.parametrize(
    ("packing", "form"),
    [(Packing.TAR_GZIP, "oci"), (Packing.TAR_ZSTD, "oci"), (Packing.TAR_GZIP, "v2s2")],
)
def test_a_modelcar_that_skopeo_compressed(
    modelcar: Path,
    tmp_path: Path,
    tool: Callable[..., str],
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    packing: Packing,
    form: str,
) -> None:
    name = f"{registry.host}/{unique_name('foreign/car')}:1"
    tool(
        "skopeo", "--policy", str(tmp_path / "home/policy.json"), "copy", "--dest-tls-verify=false",
        "--format", form, "--dest-compress-format", packing.value.removeprefix("tar+"),
        f"oci:{modelcar}:latest", f"docker://{name}",
    )  # fmt: skip
    reference = parse_registry(name)
    reader = open_reader(reference, Access())
    model = describe_foreign(reader, reader.resolve(reference.name))
    assert {layer.packing for layer in model.layers} == {packing}
    assert pull(reader, model)[1] == CAR


def test_an_image_of_umoci(tmp_path: Path, tool: Callable[..., str]) -> None:
    layout = tmp_path / "layout"
    image = f"{layout}:latest"
    source = write(tmp_path / "source", {**FILES, "old/a": b"1", "old/b": b"2"})
    tool("umoci", "init", "--layout", str(layout))
    tool("umoci", "new", "--image", image)
    tool("umoci", "insert", "--rootless", "--image", image, str(source), "/models")
    tool("umoci", "insert", "--rootless", "--image", image, "--whiteout", "/models/old/a")
    fresh = write(tmp_path / "fresh", {"c": b"3"})
    tool("umoci", "insert", "--rootless", "--image", image, "--opaque", str(fresh), "/models/sub")
    expected = {path: data for path, data in FILES.items() if not path.startswith("sub/")}
    assert pulled(layout) == {**expected, "old/b": b"2", "sub/c": b"3"}


def test_files_that_oras_pushed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    monkeypatch.chdir(write(tmp_path / "source", FILES))
    name = f"{registry.host}/{unique_name('foreign/oras')}:1"
    client = OrasClient(insecure=True)
    files = ["model.safetensors:application/vnd.example.weights", "config.json", "sub"]
    client.push(target=name, files=files)
    reference = parse_registry(name)
    reader = open_reader(reference, Access())
    model = describe_foreign(reader, reader.resolve(reference.name))
    assert model.kind is ImageFormat.ARTIFACT
    assert pull(reader, model)[1] == FILES

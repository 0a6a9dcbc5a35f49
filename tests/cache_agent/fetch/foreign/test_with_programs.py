"""Foreign images made and served by real programs, pulled by the real command: also one that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from oras.client import OrasClient

from modelimage.foreign import Packing
from modelimage.record import CHUNK_SIZE
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import noise
from tests.cache_agent.nodes import findings
from tests.modelimage.foreign.images import Maker, files_tar
from tests.servers.faulty_registry import FaultyRegistry, Stall
from tests.servers.process import ServerProcess, child_environment, program, run
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers

FILES = {"config.json": b"{}", "model.safetensors": noise(90_000, 1), "sub/tokenizer.json": b"[]"}


REPOSITORY = Path(__file__).parents[3]


def weightyard(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weightyard.cli", "--json", *arguments],
        env=child_environment(home, PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        check=False,
    )


def pulled(home: Path, root: Path, image: str) -> dict[str, bytes]:
    done = weightyard(home, "pull", image, "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert findings(root) == []
    (model,) = (root / "models").iterdir()
    return files_of(model)


def copied(layout: Path, name: str, home: Path, *options: str) -> None:
    policy = home / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    command = [program("skopeo"), "--policy", str(policy), "copy", "--dest-tls-verify=false"]
    source = f"oci:{layout}:latest"
    run([*command, *options, source, f"docker://{name}"], environment=child_environment(home))


@pytest.mark.parametrize("packing", [Packing.TAR_GZIP, Packing.TAR_ZSTD])
def test_a_modelcar_that_skopeo_compressed(
    tmp_path: Path,
    root: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    packing: Packing,
) -> None:
    maker = Maker(tmp_path / "layout")
    # Else skopeo takes the layers that it compressed for the other test.
    expected = {**FILES, "packing": packing.value.encode()}
    files = {f"models/{path}": data for path, data in expected.items()}
    maker.image(files_tar({"etc/os": packing.value.encode()}), files_tar(files))
    name = f"{registry.host}/{unique_name('foreign/car')}:1"
    suffix = packing.value.removeprefix("tar+")
    copied(tmp_path / "layout", name, tmp_path, "--dest-compress-format", suffix)
    assert pulled(tmp_path, root, name) == expected
    shown = json.loads(weightyard(tmp_path, "inspect", name).stdout.splitlines()[-1])
    assert {layer["packing"] for layer in shown["layers"]} == {packing.value}
    assert weightyard(tmp_path, "verify", name).returncode == 0
    (model,) = (root / "models").iterdir()
    assert weightyard(tmp_path, "verify", str(model)).returncode == 0


def test_an_image_of_umoci_in_a_layout(tmp_path: Path, root: Path) -> None:
    source, layout = tmp_path / "source", tmp_path / "layout"
    for path, data in FILES.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)

    def umoci(*arguments: str) -> None:
        run([program("umoci"), *arguments], environment=child_environment(tmp_path))

    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:latest")
    umoci("insert", "--rootless", "--image", f"{layout}:latest", str(source), "/models")
    assert pulled(tmp_path, root, f"oci:{layout}:latest") == FILES


def test_files_that_oras_pushed(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in (("model.gguf", noise(70_000, 2)), ("README.md", b"# m")):
        (tmp_path / name).write_bytes(data)
    image = f"{registry.host}/{unique_name('foreign/oras')}:1"
    OrasClient(insecure=True).push(
        target=image, files=["model.gguf:application/vnd.example.gguf", "README.md"]
    )
    monkeypatch.undo()
    assert pulled(tmp_path, root, image) == {"model.gguf": noise(70_000, 2), "README.md": b"# m"}


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_ZSTD])
def test_a_pull_that_is_killed_in_the_middle_goes_on(
    tmp_path: Path,
    root: Path,
    registry: DockerRegistry,
    unique_name: Callable[[str], str],
    packing: Packing,
) -> None:
    """Whose layers stop coming in their middle, so that it can't end before it is killed."""
    large = noise(8 * CHUNK_SIZE, 3)
    maker = Maker(tmp_path / "layout")
    maker.image(files_tar({"models/large": large, "models/config.json": b"{}"}), packing=packing)
    name = f"{unique_name('foreign/killed')}:1"
    copied(tmp_path / "layout", f"{registry.host}/{name}", tmp_path, "--preserve-digests")
    with FaultyRegistry(registry.host, Stall(CHUNK_SIZE // 2, times=1000)) as upstream:
        image = f"{upstream.host}/{name}"
        command = [sys.executable, "-m", "weightyard.cli", "pull", image, "--root", str(root)]
        environment = child_environment(tmp_path, PYTHONPATH=str(REPOSITORY))
        with ServerProcess(command, log=tmp_path / "log", environment=environment) as child:
            child.wait_for(lambda: list((root / "partial").glob("*.data")), what="partial file")
            child.kill()
        upstream.faults = ()
        assert not list((root / "models").iterdir())
        assert pulled(tmp_path, root, image) == {"large": large, "config.json": b"{}"}

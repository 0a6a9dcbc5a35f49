"""What we publish is what others pull: docker-registry, skopeo, containerd and podman get the source's bytes.

The clients are the real ones and share no code with ours. An image holds the files at its root, the record, and the
link `models -> .`; a ModelPack manifest names the same layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.build import BuildOptions, BuildResult
from builder.variants import QuantizeChoices
from builder.verifier import image_contents, read_record, verify_directory, verify_image
from modelimage import mediatypes
from modelimage.access import Access, open_reader
from modelimage.digest import Digest
from modelimage.errors import NotFound
from modelimage.layout import Layout
from modelimage.path_rules import MODELS_LINK, RECORD_NAME
from modelimage.reference import parse_registry
from modelimage.resolve import resolve_model
from tests.builder.building import build_here, weightyard
from tests.builder.checkpoints import pattern, quantizable, sharded, weights, write
from tests.servers import skopeo
from tests.servers.containerd import Containerd
from tests.servers.fixtures import USERS
from tests.servers.podman import Podman
from tests.servers.registry import DockerRegistry, TokenAuthRegistry

pytestmark = pytest.mark.servers
UniqueName = Callable[[str], str]


@dataclass(frozen=True)
class Pushed:
    """A checkpoint, what our build of it gave, and where it went."""

    source: Path
    reference: str
    result: BuildResult
    scratch: Path

    @property
    def digest(self) -> Digest:
        return self.result.publication.tags["v1"]


def checkpoint(directory: Path) -> Path:
    """Shards, folders, an empty file, a name of more than 100 characters, and several megabytes."""
    sharded(directory)
    long_name = "/".join(["a-folder-with-a-rather-long-name"] * 4) + "/config.json"
    return write(
        directory,
        {
            "2_Dense/model.safetensors": weights({"dense.weight": (1200, 1000)}),
            long_name: pattern(100, "long"),
            "empty.txt": b"",
            "README.md": "# Modèle\n".encode(),
        },
    )


@pytest.fixture(scope="module")
def pushed(
    registry: DockerRegistry, unique_name: UniqueName, tmp_path_factory: pytest.TempPathFactory
) -> Pushed:
    scratch = tmp_path_factory.mktemp("publish")
    source = checkpoint(scratch / "source")
    reference = f"{registry.host}/{unique_name('team/model')}:v1"
    return Pushed(source, reference, build_here(source, reference, scratch), scratch)


def contents(directory: Path) -> dict[str, str]:
    """The sha256 of every file below a directory, by path; links aren't followed."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[path.relative_to(directory).as_posix()] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
    return found


def assert_holds(mounted: Path, pushed: Pushed) -> None:
    """A mounted image holds the source's files byte for byte, the record and the link."""
    found = contents(mounted)
    record = found.pop(RECORD_NAME)
    # What a runtime puts into the root file system of any container.
    runtime = {path for path in found if path.split("/")[0] in ("dev", "etc", "proc", "run", "sys")}
    assert {path: digest for path, digest in found.items() if path not in runtime} == contents(
        pushed.source
    )
    assert Digest(record) == pushed.result.records[0].key
    assert (mounted / MODELS_LINK).readlink() == Path()
    assert (mounted / MODELS_LINK / "config.json").is_file()


def test_containerd_unpacks_the_source(pushed: Pushed, containerd: Containerd) -> None:
    containerd.pull(pushed.reference)
    with containerd.mounted(pushed.reference) as mounted:
        assert_holds(mounted, pushed)
    containerd.remove(pushed.reference)


def test_containerd_fetches_every_manifest_and_another_platform(
    pushed: Pushed, containerd: Containerd
) -> None:
    containerd.ctr("content", "fetch", "--plain-http", "--all-platforms", pushed.reference)
    containerd.pull(pushed.reference, "--platform", "linux/arm64")
    containerd.remove(pushed.reference)


def test_podman_mounts_the_source(pushed: Pushed, podman: Podman) -> None:
    podman.pull(pushed.reference)
    with podman.mounted(pushed.reference) as mounted:
        assert_holds(mounted, pushed)


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_skopeo_sees_an_image_of_each_platform(pushed: Pushed, architecture: str) -> None:
    name = f"docker://{pushed.reference}"
    raw = skopeo.inspect(name, "--raw")
    platforms = [manifest.get("platform", {}).get("architecture") for manifest in raw["manifests"]]
    assert platforms == ["amd64", "arm64", "unknown"]
    manifest = next(
        m for m, p in zip(raw["manifests"], platforms, strict=True) if p == architecture
    )
    repository = name.rpartition(":")[0]
    config = skopeo.inspect(f"{repository}@{manifest['digest']}", "--config")
    assert config["architecture"] == architecture
    layers = skopeo.inspect(f"{repository}@{manifest['digest']}", "--raw")["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in layers]


def test_skopeo_copies_everything_into_a_layout_that_we_read(
    pushed: Pushed, tmp_path: Path
) -> None:
    skopeo.copy(f"docker://{pushed.reference}", f"oci:{tmp_path}/copy:v1", "--all")
    layout = Layout(tmp_path / "copy")
    assert layout.resolve("v1").digest == pushed.digest
    assert resolve_model(layout, "v1").record == pushed.result.records[0]
    verify_image(layout, image_contents(layout, "v1"), lambda _: None).raise_problems()


def test_skopeo_copies_our_layout_into_a_registry(
    pushed: Pushed, registry: DockerRegistry, unique_name: UniqueName, tmp_path: Path
) -> None:
    layout = build_here(pushed.source, f"oci:{tmp_path}/out:v1", pushed.scratch)
    assert layout.publication == pushed.result.publication
    target = f"{registry.host}/{unique_name('copied')}:v1"
    skopeo.copy(f"oci:{tmp_path}/out:v1", f"docker://{target}", "--all")
    assert open_reader(parse_registry(target), Access()).resolve("v1").digest == pushed.digest


def test_the_bare_modelpack_manifest_has_its_tag(pushed: Pushed) -> None:
    raw = skopeo.inspect(f"docker://{pushed.reference}-modelpack", "--raw")
    assert raw["artifactType"] == mediatypes.MODELPACK_MANIFEST
    assert raw["config"]["mediaType"] == mediatypes.MODELPACK_CONFIG
    assert {layer["mediaType"] for layer in raw["layers"]} <= {
        mediatypes.MODELPACK_WEIGHT_TAR,
        mediatypes.MODELPACK_CONFIG_TAR,
        mediatypes.MODELPACK_DOC_TAR,
    }
    image = pushed.result.records[0].layers
    assert {layer.digest for layer in image} <= {
        Digest.parse(layer["digest"]) for layer in raw["layers"]
    }


def test_we_verify_what_we_pushed(pushed: Pushed) -> None:
    reference = parse_registry(pushed.reference)
    reader = open_reader(reference, Access())
    found = verify_image(reader, image_contents(reader, reference.name), lambda _: None)
    assert found.problems == ()


def test_a_pulled_directory_is_what_its_record_says(pushed: Pushed, podman: Podman) -> None:
    podman.pull(pushed.reference)
    with podman.mounted(pushed.reference) as mounted:
        record = read_record(mounted)
        assert record == pushed.result.records[0]
        found = verify_directory(mounted, record, lambda _: None)
    assert [
        problem for problem in found.problems if "is not in the record" not in problem.what
    ] == []


def test_a_second_push_sends_no_layer_again(pushed: Pushed, registry: DockerRegistry) -> None:
    repository = parse_registry(pushed.reference).repository
    uploads = f"/v2/{repository}/blobs/uploads/"
    before = [access for access in registry.accesses(uploads) if access.method != "POST"]
    again = build_here(pushed.source, pushed.reference, pushed.scratch)
    after = [access for access in registry.accesses(uploads) if access.method != "POST"]
    assert again.publication == pushed.result.publication
    assert again.sent.sent == 0
    assert again.sent.held == sum(layer.size for layer in again.publication.layers)
    assert after == before


class Interrupted(BaseException):
    """Ctrl-C after the layers."""


def test_a_broken_off_push_shows_no_tag_and_goes_on(
    pushed: Pushed,
    registry: DockerRegistry,
    unique_name: UniqueName,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    reference = f"{registry.host}/{unique_name('interrupted')}:v1"
    source = checkpoint(tmp_path / "source")

    def interrupt(*arguments: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("builder.publish.put_document", interrupt)
        patch.setattr("builder.destination.put_document", lambda *_: None)
        with pytest.raises(Interrupted):
            build_here(source, reference, tmp_path)
    parsed = parse_registry(reference)
    assert tags_of(reference) == []
    result = build_here(source, reference, tmp_path)
    assert result.sent.sent == 0
    reader = open_reader(parsed, Access())
    assert reader.resolve("v1").digest == result.publication.tags["v1"] == pushed.digest


def tags_of(reference: str) -> list[str]:
    try:
        return open_reader(parse_registry(reference), Access()).tags()
    except NotFound:
        return []


def test_a_registry_with_tokens_takes_a_push(
    pushed: Pushed, token_registry: TokenAuthRegistry, unique_name: UniqueName
) -> None:
    to = f"{token_registry.host}/{unique_name('public/model')}:v1"
    outcome = weightyard(
        "build", pushed.source, "--to", to, "--username", "bob", "--password-stdin", "--json", "-q",
        environment={"HOME": str(pushed.scratch)}, given=USERS["bob"],
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["digest"] == str(pushed.digest)


def test_every_variant_has_an_index_of_its_own(
    registry: DockerRegistry, unique_name: UniqueName, tmp_path: Path, podman: Podman
) -> None:
    source = quantizable(tmp_path / "source")
    reference = f"{registry.host}/{unique_name('variants')}:v1"
    options = BuildOptions(("bf16", "int8"), quantize=QuantizeChoices(engine="rtn"))
    result = build_here(source, reference, tmp_path, options)
    podman.pull(f"{reference}-int8")
    with podman.mounted(f"{reference}-int8") as mounted:
        assert read_record(mounted) == result.records[1]
        problems = verify_directory(mounted, result.records[1], lambda _: None).problems
    assert [each for each in problems if "is not in the record" not in each.what] == []
    shown = weightyard("inspect", reference, "--variant", "int8", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["quality"]["scheme"] == "int8"

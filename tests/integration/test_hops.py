"""An image of ours survives what other tools do to it: after every hop it is inspected, verified and pulled.

What a hop leaves unchanged is read by its record; what it compressed, merged or built upon is a foreign image whose
files are compared with the record that it still carries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from builder.build import BuildResult
from tests.builder.building import Outcome, build_here, weightyard_here
from tests.builder.checkpoints import single
from tests.integration import hops
from tests.integration.hops import Hop, Tools
from tests.servers.containerd import Containerd
from tests.servers.podman import Podman
from tests.servers.registry import DockerRegistry

pytestmark = pytest.mark.servers

# True: the layers are as published, so the record describes them.
HOPS: Final[dict[str, tuple[Hop, bool]]] = {
    "podman pull, tag, push": (hops.podman_push(), False),
    "podman push as v2s2": (hops.podman_push("--format", "v2s2"), False),
    "podman push as zstd": (hops.podman_push("--compression-format", "zstd"), False),
    "podman push as zstd:chunked": (
        hops.podman_push("--compression-format", "zstd:chunked"),
        False,
    ),
    "podman save, load as oci-archive": (hops.podman_archive("oci-archive"), False),
    "podman save, load as docker-archive": (hops.podman_archive("docker-archive"), False),
    "docker save, load": (hops.docker_archive, False),
    "buildah from, commit": (hops.buildah_commit(), False),
    "buildah commit as docker": (hops.buildah_commit("--format", "docker"), False),
    "buildah commit --squash": (hops.buildah_commit("--squash"), False),
    "buildah commit --squash, uncompressed": (hops.squash_uncompressed, False),
    "skopeo copy": (hops.skopeo(), False),
    "skopeo copy --preserve-digests": (hops.skopeo("--preserve-digests"), True),
    "skopeo copy to v2s2": (hops.skopeo("--format", "v2s2"), False),
    "skopeo copy with gzip": (hops.skopeo("--dest-compress-format", "gzip"), False),
    "skopeo copy with zstd": (hops.skopeo("--dest-compress-format", "zstd"), False),
    # The index's ModelPack manifest is as it was: no tool compresses layers of types that it doesn't know.
    "skopeo copy --all with gzip": (hops.skopeo("--all", "--dest-compress-format", "gzip"), True),
    "skopeo copy over dir": (hops.through("dir"), False),
    "skopeo copy over oci": (hops.through("oci"), False),
    "skopeo copy over oci-archive": (hops.through("oci-archive"), False),
    "skopeo copy over oci, digests kept": (hops.through("oci", "--preserve-digests"), True),
    "skopeo copy over docker-archive": (hops.through("docker-archive"), False),
    "umoci": (hops.umoci, True),
    "ctr convert": (hops.containerd_convert("--oci"), True),
    "ctr convert --uncompress": (hops.containerd_convert("--uncompress"), True),
    "a registry that drops annotations": (hops.without_annotations, True),
}


@dataclass(frozen=True)
class Published:
    reference: str
    source: Path
    result: BuildResult


@pytest.fixture(scope="module")
def published(registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory) -> Published:
    scratch = tmp_path_factory.mktemp("hops")
    source = single(scratch / "source")
    reference = f"{registry.host}/hops/model:v1"
    return Published(
        source=source, reference=reference, result=build_here(source, reference, scratch)
    )


@pytest.fixture
def tools(podman: Podman, containerd: Containerd, tmp_path: Path) -> Tools:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Tools(podman, containerd, scratch)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    outcome = weightyard_here(capsys, "--json", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "weightyard.json"
    }


@pytest.mark.parametrize("name", HOPS)
def test_an_image_survives_the_hop(
    name: str,
    published: Published,
    tools: Tools,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hop, as_published = HOPS[name]
    record = published.result.records[0]
    # A registry of its own: where the original's blobs are known, tools would not send others.
    with DockerRegistry() as elsewhere:
        target = f"{elsewhere.host}/hops/copy:v1"
        hop(tools, published.reference, target)

        shown = ran(capsys, "inspect", target).json
        verified = ran(capsys, "verify", target)
        pulled = ran(capsys, "pull", target, "--root", tmp_path / "cache")

    assert digests(Path(pulled.json["path"])) == digests(published.source)
    assert pulled.json["variant"] == record.variant
    if as_published:
        assert shown["key"] == pulled.json["key"] == str(record.key)
        assert "original" not in verified.json
        return
    # Its layers are others, but every file is proved to be the record's.
    assert shown["key"] == pulled.json["key"] != str(record.key)
    assert verified.json["original"] == {"key": str(record.key), "variant": "bf16", "differs": []}
    for said in (verified.err, pulled.json["note"]):
        assert "every file is as its record says" in said
        assert "signatures of the original do not cover it" in said


def test_what_was_changed_on_the_way_is_named(
    published: Published, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DockerRegistry() as elsewhere:
        target = f"{elsewhere.host}/hops/changed:v1"
        hops.with_changed_file(tools, published.reference, target)
        verified = ran(capsys, "verify", target)
        pulled = ran(capsys, "pull", target, "--root", tmp_path / "cache").json
    assert verified.json["original"]["differs"] == ["added.txt", "config.json"]
    assert pulled["variant"] == "as-published"
    assert "its record does not vouch for: added.txt, config.json" in pulled["note"]
    assert (Path(pulled["path"]) / "config.json").read_bytes() == b"{}"

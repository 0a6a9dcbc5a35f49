"""What other tools do to an image on its way: each hop takes a reference in a registry and leaves another one there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modelimage import canonical, mediatypes
from modelimage.access import Access, open_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.reference import parse_registry
from tests.servers.containerd import Containerd
from tests.servers.podman import Podman


@dataclass(frozen=True)
class Tools:
    """The programs, with one storage of their own, and a scratch directory."""

    podman: Podman
    containerd: Containerd
    scratch: Path

    def skopeo(self, source: str, target: str, *options: str) -> None:
        """`skopeo copy`."""
        self.podman.tool(
            "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", *options, source, target
        )  # fmt: skip

    def buildah(self, *arguments: str) -> str:
        return self.podman.tool("buildah", *arguments).strip()

    @contextmanager
    def container(self, source: str) -> Iterator[str]:
        """A container of buildah's from an image."""
        name = self.buildah("from", "--tls-verify=false", source)
        try:
            yield name
        finally:
            self.buildah("rm", name)


Hop = Callable[[Tools, str, str], None]


def skopeo(*options: str) -> Hop:
    """`skopeo copy` between registries."""

    def hop(tools: Tools, source: str, target: str) -> None:
        tools.skopeo(f"docker://{source}", f"docker://{target}", *options)

    return hop


def through(transport: str, *options: str) -> Hop:
    """`skopeo copy` into a file or directory and from there to the target."""

    def hop(tools: Tools, source: str, target: str) -> None:
        place = f"{transport}:{tools.scratch / 'place'}"
        if transport != "dir":
            place += ":model:v1"
        tools.skopeo(f"docker://{source}", place, *options)
        tools.skopeo(place, f"docker://{target}", *options)

    return hop


def podman_push(*options: str) -> Hop:
    """`podman pull; tag; push`."""

    def hop(tools: Tools, source: str, target: str) -> None:
        tools.podman.pull(source)
        tools.podman.podman("tag", source, target)
        tools.podman.podman("push", "--quiet", "--tls-verify=false", *options, target)

    return hop


def podman_archive(form: str) -> Hop:
    """`podman save; load; push`."""

    def hop(tools: Tools, source: str, target: str) -> None:
        archive = str(tools.scratch / "saved.tar")
        tools.podman.pull(source)
        tools.podman.podman("tag", source, target)
        tools.podman.podman("save", "--quiet", "--format", form, "--output", archive, target)
        tools.podman.podman("rmi", "--force", target)
        tools.podman.podman("load", "--quiet", "--input", archive)
        tools.podman.podman("push", "--quiet", "--tls-verify=false", target)

    return hop


def docker_archive(tools: Tools, source: str, target: str) -> None:
    """`docker pull; save; load; push` of the docker program, with podman as its engine."""
    archive = str(tools.scratch / "saved.tar")
    with tools.podman.docker_api() as host:
        docker = partial(tools.podman.tool, "docker", "--host", host)
        tools.podman.pull(source)
        docker("tag", source, target)
        docker("save", "--output", archive, target)
        docker("rmi", "--force", target)
        docker("load", "--quiet", "--input", archive)
    tools.podman.podman("push", "--quiet", "--tls-verify=false", target)


def buildah_commit(*options: str, push: tuple[str, ...] = ()) -> Hop:
    """`buildah from; commit; push`."""

    def hop(tools: Tools, source: str, target: str) -> None:
        with tools.container(source) as name:
            tools.buildah("commit", "--quiet", *options, name, target)
        tools.buildah("push", "--quiet", "--tls-verify=false", *push, target)

    return hop


def containerd_convert(*options: str) -> Hop:
    """`ctr images pull; convert; push`."""

    def hop(tools: Tools, source: str, target: str) -> None:
        ctr = tools.containerd.ctr
        tools.containerd.pull(source)
        ctr("images", "convert", *options, source, target)
        ctr("images", "push", "--plain-http", target)
        ctr("images", "rm", source, target)

    return hop


def squash_uncompressed(tools: Tools, source: str, target: str) -> None:
    """`buildah commit --squash` into a layout without compression, from there to the target."""
    layout = f"oci:{tools.scratch / 'squashed'}:v1"
    with tools.container(source) as name:
        tools.buildah("commit", "--quiet", "--squash", "--disable-compression", name, layout)
    tools.skopeo(layout, f"docker://{target}")


def with_changed_file(tools: Tools, source: str, target: str) -> None:
    """`buildah from; copy; commit; push`: a file is replaced, another one added."""
    changed = tools.scratch / "changed"
    changed.mkdir()
    (changed / "config.json").write_bytes(b"{}")
    (changed / "added.txt").write_bytes(b"more")
    with tools.container(source) as name:
        tools.buildah("copy", "--quiet", name, str(changed), "/")
        tools.buildah("commit", "--quiet", name, target)
    tools.buildah("push", "--quiet", "--tls-verify=false", target)


def umoci(tools: Tools, source: str, target: str) -> None:
    """`umoci config`, which writes a new config and manifest."""
    layout = tools.scratch / "layout"
    tools.skopeo(f"docker://{source}", f"oci:{layout}:v1", "--preserve-digests")
    tools.podman.tool("umoci", "config", "--image", f"{layout}:v1", "--author", "someone")
    tools.skopeo(f"oci:{layout}:v1", f"docker://{target}", "--preserve-digests")


def without_annotations(tools: Tools, source: str, target: str) -> None:
    """A registry that rewrites manifests: every annotation of the index, its manifests and their layers is gone."""
    tools.skopeo(f"docker://{source}", f"docker://{target}", "--all", "--preserve-digests")
    reference = parse_registry(target)
    place = open_repository(reference, Access())

    def bare(document: dict[str, Any], kind: str, tag: str | None) -> Descriptor:
        document.pop("annotations", None)
        for each in (*document.get("layers", []), *document.get("manifests", [])):
            each.pop("annotations", None)
        data = canonical.to_bytes(document)
        descriptor = Descriptor(kind, Digest.of(data), len(data))
        place.put_manifest(descriptor, data, tag)
        return descriptor

    index = canonical.parse(place.manifest(place.resolve("v1")), what="the index")
    for entry in index["manifests"]:
        found = place.resolve(entry["digest"])
        made = bare(
            canonical.parse(place.manifest(found), what="a manifest"), found.media_type, None
        )
        entry |= {"digest": str(made.digest), "size": made.size}
    bare(index, mediatypes.OCI_INDEX, "v1")

"""Foreign images made by hand in an OCI layout, and two ways to pull them back out of it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zstandard

from modelimage.descriptor import Descriptor, Platform
from modelimage.digest import Digest
from modelimage.foreign import ForeignModel, Packing, open_layer
from modelimage.layout import Layout
from modelimage.mediatypes import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from modelimage.ranges import ByteRange
from modelimage.repository import BlobContent, ImageReader

OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"


@dataclass(frozen=True)
class Entry:
    """One member of a tar made for a test, unchecked: its name goes in as it is."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""


def directory(name: str) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, link=target)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, link=target)


def tar(entries: Iterable[Entry], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar as Python's tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.linkname, member.size = entry.type, entry.link, len(entry.data)
            archive.addfile(member, io.BytesIO(entry.data))
    return out.getvalue()


def files_tar(files: Mapping[str, bytes]) -> bytes:
    return tar([Entry(name, data) for name, data in files.items()])


def compress(data: bytes, packing: Packing) -> bytes:
    match packing:
        case Packing.TAR_GZIP:
            return gzip.compress(data, mtime=0)
        case Packing.TAR_ZSTD:
            return zstandard.ZstdCompressor().compress(data)
        case _:
            return data


class Maker:
    """Puts blobs and manifests into a layout, whatever sense they make."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout(path)

    def blob(
        self, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None
    ) -> Descriptor:
        described = Descriptor(media_type, Digest.of(data), len(data), annotations or {})
        self.layout.put_blob(BlobContent(described, lambda offset: iter([data[offset:]])))
        return described

    def manifest(
        self,
        config: Descriptor,
        layers: Iterable[Descriptor],
        *,
        tag: str | None = "latest",
        **members: Any,
    ) -> Descriptor:
        media_type = members.pop("mediaType", OCI_MANIFEST)
        document = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
            **members,
        }
        return self._put(media_type, document, tag)

    def index(self, manifests: Iterable[Descriptor], *, tag: str | None = "latest") -> Descriptor:
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [each.to_json() for each in manifests],
        }
        return self._put(OCI_INDEX, document, tag)

    def image(
        self,
        *tars: bytes,
        packing: Packing = Packing.TAR,
        base: str = OCI_TAR,
        config_type: str = OCI_CONFIG,
        diff_ids: list[str] | None = None,
        tag: str | None = "latest",
        **members: Any,
    ) -> Descriptor:
        """A container image of these layers, all packed alike."""
        suffix = packing.value.removeprefix("tar")
        suffix = suffix.replace("+", ".") if base == DOCKER_TAR else suffix
        layers = [self.blob(base + suffix, compress(each, packing)) for each in tars]
        ids = [str(Digest.of(each)) for each in tars] if diff_ids is None else diff_ids
        config = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": ids},
        }
        return self.manifest(self.json(config_type, config), layers, tag=tag, **members)

    def json(self, media_type: str, document: object) -> Descriptor:
        return self.blob(media_type, json.dumps(document).encode())

    def _put(self, media_type: str, document: object, tag: str | None) -> Descriptor:
        data = json.dumps(document).encode()
        described = Descriptor(media_type, Digest.of(data), len(data))
        self.layout.put_manifest(described, data, tag)
        return described


def on(descriptor: Descriptor, platform: Platform) -> Descriptor:
    return replace(descriptor, platform=platform)


def pull(reader: ImageReader, model: ForeignModel) -> tuple[ForeignModel, dict[str, bytes]]:
    """Stream every layer once, as an agent does; the model with all that was found, and its files."""
    spooled: dict[tuple[Digest, int], bytearray] = {}
    members = {}
    for layer in {layer.digest: layer for layer in model.layers}.values():
        with open_layer(reader, layer, limits=model.limits) as stream:
            for piece in stream:
                spool = spooled.setdefault((layer.digest, piece.member), bytearray())
                assert len(spool) == piece.offset
                spool += piece.data
        members[layer.digest] = stream.members
    listed = model.listed(members)
    return listed, {each.path: bytes(spooled[each.layer, each.member]) for each in listed.files}


def pull_ranges(reader: ImageReader, model: ForeignModel) -> dict[str, bytes]:
    """Read each file at its offset in its layer."""
    return {each.path: _range(reader, model, each.path) for each in model.files}


def _range(reader: ImageReader, model: ForeignModel, path: str) -> bytes:
    file = next(each for each in model.files if each.path == path)
    assert file.offset is not None
    if not file.size:
        return b""
    data = memoryview(bytearray(file.size))
    wanted = ByteRange(file.offset, file.offset + file.size)
    filled = 0
    with reader.blob(model.layer(file.layer).descriptor, wanted) as stream:
        while filled < file.size and (count := stream.readinto(data[filled:])):
            filled += count
    return bytes(data)

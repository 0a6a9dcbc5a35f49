"""A tiny OCI image layout made by hand: what clients and servers are tried with before our own images come into it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"


def tiny_layout(directory: Path, files: Mapping[str, bytes], *, tag: str = "latest") -> str:
    """Write a linux/amd64 image of one uncompressed layer holding `files`; return the manifest's digest."""
    (directory / "blobs/sha256").mkdir(parents=True)
    layer = _tar(files)
    layer_descriptor = _blob(directory, TAR_LAYER, layer)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer_descriptor["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": _blob(directory, IMAGE_CONFIG, json.dumps(config).encode()),
        "layers": [layer_descriptor],
    }
    descriptor = _blob(directory, IMAGE_MANIFEST, json.dumps(manifest).encode())
    named = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [named]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(descriptor["digest"])


def _blob(directory: Path, media_type: str, data: bytes) -> dict[str, Any]:
    value = hashlib.sha256(data).hexdigest()
    (directory / "blobs/sha256" / value).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{value}", "size": len(data)}


def _tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()

"""A base image with a real shell: this machine's own /bin/sh with the libraries that it needs, gzip-compressed.

Written by hand, so that neither a package nor a network is needed, and nothing of ours made it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.servers.layout import IMAGE_CONFIG, IMAGE_INDEX, IMAGE_MANIFEST

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
SHELL = Path("/bin/sh")


def base_layout(directory: Path, architectures: tuple[str, ...] = ("amd64", "arm64")) -> Path:
    """An OCI layout whose tag `v1` is an index: a shell for amd64, something else for the others."""
    (directory / "blobs/sha256").mkdir(parents=True)
    manifests = [_manifest(directory, architecture) for architecture in architectures]
    index = _blob(directory, IMAGE_INDEX, _json({"schemaVersion": 2, "manifests": manifests}))
    named = {**index, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def _manifest(directory: Path, architecture: str) -> dict[str, Any]:
    files = _shell_files() if architecture == "amd64" else {"bin/sh": architecture.encode()}
    layer = _tar(files)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "BASE=yes"], "Entrypoint": ["/bin/sh", "-c"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": _blob(directory, IMAGE_CONFIG, _json(config)),
        "layers": [_blob(directory, GZIP_LAYER, gzip.compress(layer, mtime=0))],
    }
    platform = {"architecture": architecture, "os": "linux"}
    return {**_blob(directory, IMAGE_MANIFEST, _json(manifest)), "platform": platform}


def _shell_files() -> dict[str, bytes]:
    linked = subprocess.run(["ldd", SHELL], check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", linked)
    files = {path.lstrip("/"): Path(path).read_bytes() for path in libraries}
    return {**files, "bin/sh": SHELL.read_bytes()}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _blob(directory: Path, media_type: str, data: bytes) -> dict[str, Any]:
    value = hashlib.sha256(data).hexdigest()
    (directory / "blobs/sha256" / value).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{value}", "size": len(data)}


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()

"""Images that take memory: each part as large as its readers allow, and what registries answer instead of images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from typing import Final

from modelimage import mediatypes
from modelimage.mediatypes import ANNOTATION_ROLE
from modelimage.path_rules import RECORD_NAME
from modelimage.recipe import models_link_layer, single_file_layer
from modelimage.record import MAX_RECORD_BYTES, Role
from modelimage.repository import MAX_MANIFEST_BYTES
from tests.hostile.servers import (
    MIB,
    Answer,
    Repository,
    chunked_text,
    endless,
    gzip_bomb,
    index_of,
    manifest_with,
    values,
)
from tests.modelimage.test_record import small_record
from tests.servers.httpserver import Handler

# A part of what an image may have: all of them take minutes.
ENTRIES: Final = 5_000


def record_image(body: str) -> Repository:
    """An image whose record is as large as records may be."""
    text = json.dumps(json.loads(small_record().to_bytes()) | {"extra": {"x": "here"}})
    data = text.replace('"here"', f"[{body}]").encode()
    repository = Repository()
    layer = repository.put(single_file_layer(RECORD_NAME, data), mediatypes.OCI_LAYER_TAR)
    layer["annotations"] = {ANNOTATION_ROLE: Role.RECORD.value}
    link = repository.put(models_link_layer(), mediatypes.OCI_LAYER_TAR)
    config = repository.put(b"{}", mediatypes.OCI_CONFIG)
    manifest = {
        "schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": [layer, link],
    }  # fmt: skip
    repository.put(json.dumps(manifest).encode(), mediatypes.OCI_MANIFEST)
    return repository


def index_image() -> Repository:
    """An index as large as manifests may be, whose one manifest is as large."""
    repository = Repository()
    inner = repository.put(manifest_with(values(MAX_MANIFEST_BYTES - MIB)), mediatypes.OCI_MANIFEST)
    outer = index_of([inner])[:-1] + f',"x":[{values(MAX_MANIFEST_BYTES - MIB)}]}}'.encode()
    repository.put(outer, mediatypes.OCI_INDEX)
    return repository


def config_image(size: int) -> Repository:
    """A foreign image whose configuration is as large as they may be."""
    repository = Repository()
    config = repository.put(f'{{"x":[{values(size)}]}}'.encode(), mediatypes.OCI_CONFIG)
    layer = repository.put(tar_of({"config.json": b"{}"}), mediatypes.OCI_LAYER_TAR)
    manifest = {
        "schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": [layer],
    }  # fmt: skip
    repository.put(json.dumps(manifest).encode(), mediatypes.OCI_MANIFEST)
    return repository


def tar_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def crowded_image() -> Repository:
    """A foreign image of tens of thousands of small files."""
    repository = Repository()
    files = {f"models/{n // 1000}/{n}.json": b"%d" % n for n in range(ENTRIES)}
    files["models/config.json"] = b'{"model_type": "llama"}'
    files["models/model.safetensors"] = (2).to_bytes(8, "little") + b"{}"
    layer = repository.put(tar_of(files), mediatypes.OCI_LAYER_TAR)
    config = repository.put(b'{"rootfs":{"diff_ids":[]}}', mediatypes.OCI_CONFIG)
    manifest = {
        "schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": config, "layers": [layer],
    }  # fmt: skip
    repository.put(json.dumps(manifest).encode(), mediatypes.OCI_MANIFEST)
    return repository


def token_server(answer: Answer) -> Answer:
    """A registry that asks for a token of its own server, which answers so."""

    def ask(handler: Handler) -> None:
        if "token" in handler.path:
            answer(handler)
            return
        place = handler.path.split("/")[2]
        realm = f'Bearer realm="http://{handler.headers["Host"]}/v2/{place}/token",service="x"'
        handler.answer(401, b"", {"WWW-Authenticate": realm})

    return ask


# By the first part of a repository's name.
REGISTRY_ANSWERS: Final[Mapping[str, Callable[[], Answer]]] = {
    "endless-manifest": lambda: endless,
    "bomb-manifest": gzip_bomb,
    "huge-manifest": index_image,
    "endless-token": lambda: token_server(endless),
    "bomb-token": lambda: token_server(gzip_bomb()),
    "record-of-values": lambda: record_image(values(MAX_RECORD_BYTES - MIB)),
    "record-of-chunks": lambda: record_image(chunked_text(MAX_RECORD_BYTES - MIB)),
    "huge-config": lambda: config_image(8 * MIB - 1000),
}

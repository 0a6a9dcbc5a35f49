"""Plans the publication of one build, from records to blobs, manifests and tags. Pure.

For version T: `T` an index of the default variant (image manifests for two platforms, its ModelPack manifest, and the
ModelPack manifests of all other variants), `T-<variant>` an index for each other variant, and `T-modelpack`,
`T-<variant>-modelpack` the bare ModelPack manifests, because ModelPack tools don't resolve an index. No manifest can
be both kinds (containerd refuses one as the other), so the index lists both over the same layers. With a base, each
image manifest has its platform's base layers below the model's; the ModelPack manifest doesn't.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from modelimage import canonical, mediatypes
from modelimage.descriptor import (
    LINUX_AMD64,
    LINUX_ARM64,
    UNKNOWN_PLATFORM,
    Descriptor,
    Platform,
)
from modelimage.digest import Digest
from modelimage.path_rules import RECORD_NAME
from modelimage.recipe import models_link_layer, single_file_layer
from modelimage.record import Record, RecordLayer, Role
from modelimage.source_uris import source_url

PLATFORMS: Final = (LINUX_AMD64, LINUX_ARM64)

_MAX_NAMED_FILES: Final = 1_000
_MODELPACK_TYPES: Final = {
    Role.WEIGHT: mediatypes.MODELPACK_WEIGHT_TAR,
    Role.CONFIG: mediatypes.MODELPACK_CONFIG_TAR,
    Role.TOKENIZER: mediatypes.MODELPACK_CONFIG_TAR,
    Role.RECORD: mediatypes.MODELPACK_CONFIG_TAR,
    Role.DOC: mediatypes.MODELPACK_DOC_TAR,
    Role.CODE: mediatypes.MODELPACK_CODE_TAR,
}


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base image for one platform: manifest digest, layers in order, their diff_ids, and the config's `config`."""

    manifest: Digest
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A small blob or manifest built in memory."""

    descriptor: Descriptor
    data: bytes

    @classmethod
    def from_bytes(cls, media_type: str, data: bytes, **members: Any) -> Document:
        return cls(Descriptor(media_type, Digest.of(data), len(data), **members), data)


@dataclass(frozen=True, slots=True)
class Publication:
    """Everything to push, in push order: `layers` (large, from recipes), `bases`, `blobs`, `manifests`, then `tags`.

    `bases` are the layers of base images, which are copied from the base's repository.
    """

    layers: tuple[RecordLayer, ...]
    blobs: tuple[Document, ...]
    manifests: tuple[Document, ...]
    tags: Mapping[str, Digest]
    bases: tuple[Descriptor, ...] = ()

    def manifest(self, tag: str) -> Document:
        """The manifest with a tag."""
        wanted = self.tags[tag]
        return next(each for each in self.manifests if each.descriptor.digest == wanted)


_Named = TypeVar("_Named", RecordLayer, Document, Descriptor)


@dataclass(frozen=True, slots=True)
class _VariantManifests:
    record: Record
    images: tuple[Document, ...]
    modelpack: Document
    blobs: tuple[Document, ...]


def publication(
    records: Sequence[Record],
    *,
    version: str,
    created: str | None = None,
    bases: Mapping[Platform, BaseImage] | None = None,
) -> Publication:
    """Plan the publication of one build's variants; the first record is the default.

    `created` is an RFC 3339 time from SOURCE_DATE_EPOCH; None omits all times. With `bases`, there are image manifests
    for their platforms only. Equal arguments give equal bytes and so equal digests on any machine.
    """
    # Without a base the image has no program, so one set of files serves both platforms.
    below: Mapping[Platform, BaseImage | None] = bases or dict.fromkeys(PLATFORMS)
    variants = [_variant(record, created, below) for record in records]
    default, *others = variants
    # The default variant's index also lists the other variants' ModelPack manifests, so that one tag leads to all
    # of them. Their image manifests are left out: a runtime selects by platform and would find several.
    indexes = {
        version: _index([*default.images, default.modelpack, *(o.modelpack for o in others)])
    }
    # Dictionaries keep this order, and the version's own tag stays first: `set_tags` sets it last.
    bare = {f"{version}-modelpack": default.modelpack}
    for other in others:
        name = f"{version}-{other.record.variant}"
        indexes[name] = _index([*other.images, other.modelpack])
        bare[f"{name}-modelpack"] = other.modelpack
    manifests = [document for each in variants for document in (*each.images, each.modelpack)]
    tags = {tag: each.descriptor.digest for tag, each in {**indexes, **bare}.items()}
    return Publication(
        layers=_unique(layer for record in records for layer in record.layers),
        blobs=_unique(blob for each in variants for blob in each.blobs),
        manifests=_unique([*manifests, *indexes.values()]),
        tags=tags,
        bases=_unique(layer for base in (bases or {}).values() for layer in base.layers),
    )


def record_layer(record: Record) -> bytes:
    """The layer blob that contains the record."""
    return single_file_layer(RECORD_NAME, record.to_bytes())


def _variant(
    record: Record, created: str | None, bases: Mapping[Platform, BaseImage | None]
) -> _VariantManifests:
    annotations = _annotations(record, created)
    record_blob = _layer_document(record_layer(record), Role.RECORD)
    link_blob = _layer_document(models_link_layer(), Role.LINK)
    # The record is the model's first layer. The link is for KServe's modelcars, so only image manifests have it.
    layers = [record_blob.descriptor, *(_layer_descriptor(each) for each in record.layers)]
    image_layers = [layers[0], link_blob.descriptor, *layers[1:]]
    configs, images = [], []
    for platform, base in bases.items():
        config = Document.from_bytes(
            mediatypes.OCI_CONFIG,
            canonical.to_bytes(_image_config(platform, base, image_layers, created)),
            platform=platform,
        )
        configs.append(config)
        images.append(
            _manifest(
                config.descriptor,
                [*_base_layers(base), *image_layers],
                {**annotations, **_base_annotations(base)},
                platform=platform,
            )
        )
    named = [entry for layer in layers for entry in _modelpack_layers(layer, record)]
    modelpack_config = Document.from_bytes(
        mediatypes.MODELPACK_CONFIG, canonical.to_bytes(_modelpack_config(record, named, created))
    )
    # With the platform `unknown`: a runtime could take an index entry without any for an image.
    modelpack = _manifest(
        modelpack_config.descriptor,
        named,
        annotations,
        platform=UNKNOWN_PLATFORM,
        artifact_type=mediatypes.MODELPACK_MANIFEST,
    )
    return _VariantManifests(
        record, tuple(images), modelpack, (record_blob, link_blob, *configs, modelpack_config)
    )


def _annotations(record: Record, created: str | None) -> dict[str, str]:
    wanted = {
        mediatypes.ANNOTATION_VARIANT: record.variant,
        mediatypes.ANNOTATION_MODEL_KEY: str(record.key),
        mediatypes.ANNOTATION_SOURCE: record.source,
        mediatypes.ANNOTATION_REVISION: record.revision,
        mediatypes.ANNOTATION_LICENSES: record.license,
        mediatypes.ANNOTATION_CREATED: created or "",
    }
    return {name: value for name, value in wanted.items() if value}


def _layer_document(data: bytes, role: Role) -> Document:
    return Document.from_bytes(
        mediatypes.OCI_LAYER_TAR, data, annotations={mediatypes.ANNOTATION_ROLE: role.value}
    )


def _layer_descriptor(layer: RecordLayer) -> Descriptor:
    return Descriptor(
        mediatypes.OCI_LAYER_TAR,
        layer.digest,
        layer.size,
        annotations={mediatypes.ANNOTATION_ROLE: layer.role.value},
    )


def _modelpack_layers(layer: Descriptor, record: Record) -> list[Descriptor]:
    """The entries of one layer in the ModelPack manifest: one for each file in it, with the file's name."""
    role = Role(layer.annotations[mediatypes.ANNOTATION_ROLE])
    entry = replace(layer, media_type=_MODELPACK_TYPES[role])
    if role is Role.RECORD:
        files = [(RECORD_NAME, len(record.to_bytes()))]
    else:
        files = [(file.path, file.size) for file in record.layer_files(layer.digest)]
    # A manifest may have 4 MiB at most registries, so shared layers of an image of thousands of files name none.
    if len(files) > 1 and len(record.files) > _MAX_NAMED_FILES:
        return [entry]
    # ModelPack tools select layers by path, so a layer of several files is listed once for each. The blob is the same.
    return [
        replace(entry, annotations={**entry.annotations, **_file_annotations(path, size)})
        for path, size in files
    ]


def _file_annotations(path: str, size: int) -> dict[str, str]:
    """ModelPack's annotations of a file: what its tar header says (model-spec, docs/annotations.md)."""
    metadata = {
        "name": path.rpartition("/")[2],
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": size,
        "mtime": "1970-01-01T00:00:00Z",
        # tar's type of a regular file, as a number.
        "typeflag": ord("0"),
    }
    return {
        mediatypes.ANNOTATION_FILEPATH: path,
        mediatypes.ANNOTATION_FILE_METADATA: canonical.to_bytes(metadata).decode(),
    }


def _base_layers(base: BaseImage | None) -> list[Descriptor]:
    role = {mediatypes.ANNOTATION_ROLE: Role.BASE.value}
    return [replace(layer, annotations=role) for layer in base.layers] if base else []


def _base_annotations(base: BaseImage | None) -> dict[str, str]:
    return {mediatypes.ANNOTATION_BASE_DIGEST: str(base.manifest)} if base else {}


def _image_config(
    platform: Platform,
    base: BaseImage | None,
    layers: Sequence[Descriptor],
    created: str | None,
) -> dict[str, Any]:
    # An uncompressed layer's diff_id is its digest; a base's layers may be compressed.
    below = base.diff_ids if base else ()
    config: dict[str, Any] = {
        **platform.to_json(),
        "config": dict(base.run) if base else {},
        "rootfs": {
            "type": "layers",
            "diff_ids": [*below, *(str(layer.digest) for layer in layers)],
        },
    }
    if created:
        config["created"] = created
    return config


def _modelpack_config(
    record: Record, layers: Sequence[Descriptor], created: str | None
) -> dict[str, Any]:
    descriptor = {
        "createdAt": created,
        "sourceURL": source_url(record.source),
        "revision": record.revision,
        "licenses": [record.license] if record.license else None,
    }
    config = {
        "architecture": "transformer" if record.facts.architecture else None,
        "format": record.facts.format,
        "precision": record.facts.dtype,
        "quantization": record.variant if record.quantization else None,
    }
    return {
        # ModelPack requires none of these: what a checkpoint doesn't tell is left out, not written as empty.
        "descriptor": {name: value for name, value in descriptor.items() if value},
        "config": {name: value for name, value in config.items() if value},
        "modelfs": {"type": "layers", "diffIds": [str(layer.digest) for layer in layers]},
    }


def _manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str],
    *,
    platform: Platform | None,
    artifact_type: str | None = None,
) -> Document:
    # In a manifest the config has no platform: that member belongs to index entries.
    bare_config = Descriptor(config.media_type, config.digest, config.size)
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": bare_config.to_json(),
        "layers": [layer.to_json() for layer in layers],
        "annotations": dict(annotations),
    }
    if artifact_type:
        document["artifactType"] = artifact_type
    return Document.from_bytes(
        mediatypes.OCI_MANIFEST,
        canonical.to_bytes(document),
        platform=platform,
        artifact_type=artifact_type,
        annotations={
            name: annotations[name]
            for name in (mediatypes.ANNOTATION_VARIANT, mediatypes.ANNOTATION_MODEL_KEY)
        },
    )


def _index(manifests: Sequence[Document]) -> Document:
    """Build an index in the byte format of Go's image libraries.

    skopeo and podman rewrite an index when they copy it. If their bytes equal ours, the digest is unchanged and
    `--preserve-digests` works. Hence their order of members, and no artifactType, which older versions would drop.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        "manifests": [_index_entry(manifest.descriptor) for manifest in manifests],
    }
    data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return Document.from_bytes(mediatypes.OCI_INDEX, data)


def _index_entry(descriptor: Descriptor) -> dict[str, Any]:
    # Sorted as Go sorts the keys of a map.
    entry = replace(
        descriptor, artifact_type=None, annotations=dict(sorted(descriptor.annotations.items()))
    )
    return entry.to_json()


def _unique(items: Iterable[_Named]) -> tuple[_Named, ...]:
    """Deduplicate by digest, keeping the order: variants share layers, blobs and sometimes manifests."""
    by_digest: dict[Digest, _Named] = {}
    for item in items:
        digest = item.descriptor.digest if isinstance(item, Document) else item.digest
        by_digest.setdefault(digest, item)
    return tuple(by_digest.values())

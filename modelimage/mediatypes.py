"""Media types and annotations, each with the document that defines it.

OCI: opencontainers/image-spec v1.1 (media-types.md, annotations.md). ModelPack: modelpack/model-spec v0.0.7.
Docker: distribution's manifest v2 schema 2.
"""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_TAR: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

MODELPACK_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODELPACK_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MODELPACK_WEIGHT_TAR: Final = "application/vnd.cncf.model.weight.v1.tar"
MODELPACK_CONFIG_TAR: Final = "application/vnd.cncf.model.weight.config.v1.tar"
MODELPACK_DOC_TAR: Final = "application/vnd.cncf.model.doc.v1.tar"
MODELPACK_CODE_TAR: Final = "application/vnd.cncf.model.code.v1.tar"

ANNOTATION_REF_NAME: Final = "org.opencontainers.image.ref.name"
ANNOTATION_CREATED: Final = "org.opencontainers.image.created"
ANNOTATION_TITLE: Final = "org.opencontainers.image.title"
ANNOTATION_SOURCE: Final = "org.opencontainers.image.source"
ANNOTATION_REVISION: Final = "org.opencontainers.image.revision"
ANNOTATION_BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
ANNOTATION_LICENSES: Final = "org.opencontainers.image.licenses"
ANNOTATION_FILEPATH: Final = "org.cncf.model.filepath"
ANNOTATION_FILE_METADATA: Final = "org.cncf.model.file.metadata+json"

# Weightyard's own. On a manifest: the precision of its variant, and the sha256 of the record (the model key).
# On a layer descriptor: the role of the layer.
ANNOTATION_VARIANT: Final = "dev.weightyard.variant"
ANNOTATION_MODEL_KEY: Final = "dev.weightyard.model-key"
ANNOTATION_ROLE: Final = "dev.weightyard.role"

_MOST_CHARACTERS: Final = 255


def is_speakable(media_type: str) -> bool:
    """Whether a type that a document states can be a header's value: it is sent on to registries and clients."""
    return len(media_type) <= _MOST_CHARACTERS and media_type.isascii() and media_type.isprintable()

"""Images in other tools' formats, resolved to one description: files, sizes, digests, and access to their bytes.

ModelPack, KitOps, Docker's model artifacts, files pushed with oras, modelcars and any container image. A foreign image
has no chunk digests, so it is trusted layer by layer: each is verified by its digest in the manifest, and `derive` then
writes the record that the image lacks.

    model = describe_foreign(reader, reader.resolve(name))
    for layer in model.layers:
        with open_layer(reader, layer) as stream:
            for piece in stream: ...           # bytes of files, verified once the loop has ended
        found[layer.digest] = stream.members
    model = model.listed(found)                # now model.files are known, whatever the packing
"""

from modelimage.choose import resolve_manifest
from modelimage.foreign.contents import LayerContents
from modelimage.foreign.derived import (
    AS_PUBLISHED,
    AnyRecord,
    DerivedLayer,
    DerivedRecord,
    derive,
    parse_record,
)
from modelimage.foreign.describe import describe_foreign
from modelimage.foreign.layer_stream import LayerStream, open_layer
from modelimage.foreign.limits import Limits
from modelimage.foreign.model import ForeignFile, ForeignLayer, ForeignModel, ImageFormat, Packing
from modelimage.foreign.original import Original, compare_with_record, readable_record
from modelimage.foreign.served import ServedModel, served_from_directory, served_from_image
from modelimage.foreign.tarsplit import TarPiece
from modelimage.foreign.tarwalk import MemberKind, TarMember
from modelimage.resolve import resolve_ours

__all__ = [
    "AS_PUBLISHED",
    "AnyRecord",
    "DerivedLayer",
    "DerivedRecord",
    "ForeignFile",
    "ForeignLayer",
    "ForeignModel",
    "ImageFormat",
    "LayerContents",
    "LayerStream",
    "Limits",
    "MemberKind",
    "Original",
    "Packing",
    "ServedModel",
    "TarMember",
    "TarPiece",
    "compare_with_record",
    "derive",
    "describe_foreign",
    "open_layer",
    "parse_record",
    "readable_record",
    "resolve_manifest",
    "resolve_ours",
    "served_from_directory",
    "served_from_image",
]  # fmt: skip

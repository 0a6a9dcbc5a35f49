"""Splits safetensors files that exceed a registry's limit into parts, losslessly.

Every tensor keeps its name, dtype, shape and bytes; only its file changes, and the index is updated. Files within the
limit, and their layers, are unchanged. Each part is written atomically, so an interrupted build keeps the parts it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from builder.collect import CollectedCheckpoint, checked
from builder.layer_plan import PlannedFile, plan_layers
from builder.reporter import Reporter
from builder.source_digests import check_claim
from modelimage import canonical, tar
from modelimage.checkpoint_files import INDEX, WeightIndex, index_document, read_header, read_json
from modelimage.durable import pending_file, write_file, writing
from modelimage.errors import InvalidInput
from modelimage.filestream import file_pieces
from modelimage.hasher import hash_file
from modelimage.record import Role
from modelimage.safetensors import Header, TensorInfo, build_header

# The headers of a file and of its parent directories, its padding, and the end of the archive.
LAYER_OVERHEAD: Final = 8 * tar.BLOCK
_BUFFER_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One of the files that a file is split into: its name, and its tensors in their original order."""

    name: str
    tensors: tuple[TensorInfo, ...]


def plan_parts(name: str, header: Header, limit: int) -> tuple[Part, ...]:
    """Split a file's tensors into parts whose layers have at most `limit` bytes. Pure.

    Law: the concatenated tensors of all parts are the header's. Raises InvalidInput if a single tensor exceeds the
    limit.
    """
    # No part's header is longer than the whole file's, except for padding.
    room = limit - LAYER_OVERHEAD - header.data_offset - tar.BLOCK
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    # In the file's order, never by size: equal sources give equal parts, and each part is read in one sweep.
    for tensor in header.tensors:
        if tensor.size > room:
            raise InvalidInput(
                f"{name}: tensor {tensor.name!r:.200} alone has {tensor.size} bytes, too many for a layer of {limit}",
                hint=f"Give a --max-layer-size of at least {limit + tensor.size - room}.",
            )
        if size + tensor.size > room:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.size
    stem = name.removesuffix(".safetensors")
    return tuple(
        Part(f"{stem}-part-{number:04}-of-{len(groups):04}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    )


def bounded_sizes(files: Sequence[PlannedFile], limit: int | None) -> list[PlannedFile]:
    """The files with upper bounds for their sizes after splitting, for a preflight."""
    if limit is None:
        return list(files)
    most = max(0, limit - LAYER_OVERHEAD)
    return [
        replace(file, size=min(file.size, most)) if file.role is Role.WEIGHT else file
        for file in files
    ]


def reshard(
    checkpoint: CollectedCheckpoint, limit: int, folder: str, reporter: Reporter
) -> CollectedCheckpoint:
    """Split weight files so that each layer has at most `limit` bytes; returns the same checkpoint if none is larger.

    Parts go into `folder` of the build directory. Raises InvalidInput if it isn't possible, NoSpace, NotWritable.
    """
    large = [file for file in checkpoint.files if is_large(file, limit)]
    # Unchanged: its layers then keep the digests that registries already have.
    if not large:
        return checkpoint
    target = checkpoint.build_dir.folder(folder)
    headers = {
        file.path: read_header(checkpoint.locations[file.path], name=file.path)
        for file in checkpoint.files
        if file.role is Role.WEIGHT
    }
    parts = {file.path: plan_parts(file.path, headers[file.path], limit) for file in large}
    with reporter.progress("splitting", sum(file.size for file in large)) as progress:
        for file in large:
            progress.describe(file.path)
            _check_claim(checkpoint, file.path)
            for part in parts[file.path]:
                source = checkpoint.locations[file.path]
                # An existing part is complete: it gets its name only when all of it is on disk.
                if not (target / part.name).exists():
                    _write_part(source, headers[file.path], part, target / part.name)
            progress.advance(file.size)
    # After all parts: an index in the build directory names only files that exist.
    document = _index(checkpoint, headers, parts)
    with writing(target / INDEX):
        write_file(target / INDEX, canonical.to_bytes(document))
    made = dict.fromkeys((part.name for each in parts.values() for part in each), Role.WEIGHT)
    made[INDEX] = Role.CONFIG
    others = [index for index in checkpoint.indexes if index.name != INDEX]
    indexes = [WeightIndex.parse(document), *others]
    resharded = _with_files(checkpoint, made, target, indexes, gone=parts)
    _check_layers(resharded, limit)
    return resharded


def _check_claim(checkpoint: CollectedCheckpoint, path: str) -> None:
    """Compare the whole file with its source's sha256, which isn't possible after the split."""
    if path in checkpoint.claimed:
        digest = hash_file(checkpoint.locations[path]).digest
        check_claim(path, digest, checkpoint.claimed)


def is_large(file: PlannedFile, limit: int) -> bool:
    """Whether a file must be split for layers of at most `limit` bytes. Raises InvalidInput if it can't be."""
    if file.role is not Role.WEIGHT or file.size + LAYER_OVERHEAD <= limit:
        return False
    if "/" in file.path:
        raise InvalidInput(
            f"{file.path} has {file.size} bytes and is in a subdirectory, where no index can describe its parts",
            hint="Leave it out with --exclude, or choose a registry that takes larger layers.",
        )
    return True


def _with_files(
    checkpoint: CollectedCheckpoint,
    made: Mapping[str, Role],
    target: Path,
    indexes: Sequence[WeightIndex],
    *,
    gone: Mapping[str, object],
) -> CollectedCheckpoint:
    """The checkpoint with files of `target` replacing those in `gone`, validated again as a whole."""
    kept = [file for file in checkpoint.files if file.path not in gone and file.path not in made]
    new = [PlannedFile(name, (target / name).stat().st_size, role) for name, role in made.items()]
    return checked(
        kept + new,
        {**checkpoint.locations, **{name: target / name for name in made}},
        config=checkpoint.config,
        indexes=indexes,
        # A split file's sha256 was compared before the split and doesn't apply to its parts.
        claimed={
            path: digest
            for path, digest in checkpoint.claimed.items()
            if path not in gone and path not in made
        },
        build_dir=checkpoint.build_dir,
        origins=checkpoint.origins,
    )


def _index(
    checkpoint: CollectedCheckpoint,
    headers: Mapping[str, Header],
    parts: Mapping[str, Sequence[Part]],
) -> dict[str, Any]:
    """The index with the new files of the moved tensors."""
    # An existing index keeps its other members, such as metadata. A new one lists all weights in the root.
    if INDEX in checkpoint.locations and any(file.path == INDEX for file in checkpoint.files):
        document = read_json(checkpoint.locations[INDEX], name=INDEX)
    else:
        document = index_document({p: header for p, header in headers.items() if "/" not in p})
    named = document["weight_map"]
    # Another file may hold a stale copy of a tensor, whose parts the index doesn't name.
    moved = {
        tensor.name: part.name
        for path, each in parts.items()
        for part in each
        for tensor in part.tensors
        if named.get(tensor.name) == path
    }
    return {**document, "weight_map": {**named, **moved}}


def _write_part(source: Path, header: Header, part: Part, target: Path) -> None:
    layout = {tensor.name: (tensor.dtype, tensor.shape) for tensor in part.tensors}
    with writing(target), pending_file(target.parent) as pending:
        pending.write(build_header(layout, header.metadata))
        for tensor in part.tensors:
            for piece in file_pieces(source, header.data_offset + tensor.start, tensor.size):
                pending.write(piece)
        pending.publish(target)


def _check_layers(checkpoint: CollectedCheckpoint, limit: int) -> None:
    """Raise InvalidInput if shared layers exceed the limit: beyond 100 layers, files share one."""
    layers = plan_layers(checkpoint.files)
    largest = max(layer.size for layer in layers if layer.role is Role.WEIGHT)
    if largest > limit:
        raise InvalidInput(
            f"layers of at most {limit} bytes would be more layers than a container runtime supports, "
            f"so some have up to {largest} bytes",
            hint="Give a larger --max-layer-size.",
        )

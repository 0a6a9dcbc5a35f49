"""Brings a surveyed checkpoint onto this machine and validates it completely, before anything is packed.

All later steps work on the result, whether the files come from a source or from a quantization.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from builder.build_dir import BuildDir
from builder.convert import convert, converted_indexes, converted_names, write_index
from builder.layer_plan import PlannedFile
from builder.licence import MAX_BYTES, licence, states_licence
from builder.reporter import Reporter
from builder.sources.interface import RemoteFile, SourceFile
from builder.survey import Survey
from modelimage.checkpoint_files import (
    MAX_JSON_BYTES,
    WeightIndex,
    check_shards,
    read_header,
    read_json,
    repeated_tensors,
    take_header,
)
from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint
from modelimage.lfs_pointers import check_no_pointer
from modelimage.model_facts import DOCUMENTS, model_facts
from modelimage.record import ModelFacts, Role
from modelimage.safetensors import Header
from modelimage.stage_workers import run_all

_FETCHES_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class CollectedCheckpoint:
    """Files of one model on this machine, validated: what to pack, and each file's location.

    Files in `remote` stayed at their source; `locations` has all others. `claimed` has a file's sha256 according to the
    source; it is compared once ours is computed. `origins` has the pickle at the source of each converted file.
    `warnings` are sentences about the weights for the user.
    """

    files: tuple[PlannedFile, ...]
    locations: Mapping[str, Path]
    facts: ModelFacts
    licence: str
    build_dir: BuildDir
    origins: Mapping[str, str] = field(default_factory=dict)
    indexes: tuple[WeightIndex, ...] = ()
    warnings: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    claimed: Mapping[str, Digest] = field(default_factory=dict)
    remote: Mapping[str, RemoteFile] = field(default_factory=dict)

    @property
    def converted(self) -> bool:
        """Whether weights were pickles at the source."""
        return bool(self.origins)


def collect(
    surveyed: Survey, work_root: Path, reporter: Reporter, *, staged: bool = True
) -> CollectedCheckpoint:
    """Fetch the selected files, convert pickles under `work_root`, and validate everything.

    Unless `staged`, weight files stay at a source that supports streaming: only their headers are read.
    Raises InvalidCheckpoint, UnsafePickle, NoSpace, NotWritable, and any error of the source.
    """
    selection = surveyed.selection
    wanted = [surveyed.files[path] for path in (*selection.roles, *selection.pickles)]
    remote = {} if staged else _remote(surveyed)
    # Configuration is fetched in any case: later steps read it as files.
    here = [file for file in wanted if file.path not in remote]
    # All before anything is converted: a missing file must not be found after minutes of work.
    locations = _fetch(surveyed, here, reporter)
    for file in here:
        check_no_pointer(locations[file.path], file.size, name=file.path)
    build_dir = BuildDir.from_locations(work_root, locations)
    files, indexes = surveyed.planned(), surveyed.indexes
    if selection.pickles:
        made = _convert(surveyed, locations, build_dir, reporter)
        files += made.files
        locations = {**locations, **made.locations}
        indexes += made.indexes
    return checked(
        files,
        locations,
        config=surveyed.config,
        indexes=indexes,
        claimed={file.path: file.claimed for file in wanted if file.claimed},
        build_dir=build_dir,
        remote=remote,
        origins={name: path for path, name in converted_names(selection.pickles).items()},
    )


def _remote(surveyed: Survey) -> dict[str, RemoteFile]:
    found = {
        path: surveyed.source.remote(surveyed.files[path]) for path in surveyed.selection.weights
    }
    return {path: file for path, file in found.items() if file is not None}


def _fetch(surveyed: Survey, wanted: list[SourceFile], reporter: Reporter) -> dict[str, Path]:
    """Fetch all files; return their local paths."""

    def fetch(file: SourceFile, advance: Callable[[int], None]) -> Path:
        return surveyed.source.fetch(file, advance)

    # Nothing is transferred: a progress bar would only flicker.
    if surveyed.source.is_local:
        return {file.path: fetch(file, lambda _: None) for file in wanted}
    with reporter.progress("fetching", sum(file.size for file in wanted)) as progress:

        def fetch_counted(file: SourceFile, advance: Callable[[int], None]) -> Path:
            counted = _Counted(advance)
            path = fetch(file, counted)
            # Bytes that were there before don't count as transferred now.
            progress.resume(max(0, file.size - counted.total))
            return path

        paths = run_all(wanted, fetch_counted, advance=progress.advance, workers=_FETCHES_AT_ONCE)
    return {file.path: path for file, path in zip(wanted, paths, strict=True)}


class _Counted:
    """Forwards byte counts and sums them: the difference to the file's size was already fetched earlier."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self.total = 0

    def __call__(self, count: int) -> None:
        self.total += count
        self._advance(count)


@dataclass(frozen=True, slots=True)
class _Converted:
    files: list[PlannedFile]
    locations: dict[str, Path]
    indexes: tuple[WeightIndex, ...]


def _convert(
    surveyed: Survey, locations: Mapping[str, Path], build_dir: BuildDir, reporter: Reporter
) -> _Converted:
    """Convert pickles to safetensors in the build directory; files finished by an earlier run are kept."""
    folder = build_dir.folder("converted")
    names = converted_names(surveyed.selection.pickles)
    tied = surveyed.config.get("tie_word_embeddings") is True
    total = sum(surveyed.files[path].size for path in names)
    with reporter.progress("converting", total) as progress:
        for path, name in names.items():
            progress.describe(path)
            # An existing file is complete: `convert` publishes it under its name only when all of it is on disk.
            if not (folder / name).exists():
                convert(locations[path], folder / name, name=path, tied=tied)
            progress.advance(surveyed.files[path].size)
    made = dict.fromkeys(names.values(), Role.WEIGHT)
    sets = converted_indexes(names.values(), surveyed.selection.weights)
    indexes = []
    for index, shards in sets.items():
        write_index(folder, index, shards)
        made[index] = Role.CONFIG
        indexes.append(WeightIndex.parse(read_json(folder / index, name=index), name=index))
    return _Converted(
        [PlannedFile(name, (folder / name).stat().st_size, role) for name, role in made.items()],
        {name: folder / name for name in made},
        tuple(indexes),
    )


def checked(
    files: list[PlannedFile],
    locations: Mapping[str, Path],
    *,
    config: Mapping[str, Any],
    indexes: Sequence[WeightIndex],
    claimed: Mapping[str, Digest],
    build_dir: BuildDir,
    remote: Mapping[str, RemoteFile] | None = None,
    origins: Mapping[str, str] | None = None,
) -> CollectedCheckpoint:
    """A checkpoint whose headers, indexes and sizes agree. Raises InvalidCheckpoint otherwise.

    `origins` has the path at the source of each converted file.
    """
    away = remote or {}
    for file in files:
        # A remote file's size is validated with its header.
        if file.path not in away:
            _check_size(file, locations[file.path])
    headers = _headers([file for file in files if file.role is Role.WEIGHT], locations, away)
    # Again after a conversion or a split: whoever wrote the files, what is packed was checked as a whole.
    for index in indexes:
        check_shards(index, headers)
    # An index that was made here of converted files says nothing about which copy of a tensor is meant.
    stated = [index for index in indexes if index.shards.keys().isdisjoint(origins or {})]
    warnings = repeated_tensors(headers, stated, origins)
    return CollectedCheckpoint(
        files=tuple(sorted(files)),
        locations=locations,
        facts=model_facts(config, headers.values(), _documents(files, locations)),
        licence=licence(_texts(files, locations)),
        config=config,
        claimed=claimed,
        build_dir=build_dir,
        origins=origins or {},
        indexes=tuple(indexes),
        warnings=tuple(warnings),
        remote=away,
    )


def _headers(
    weights: Sequence[PlannedFile], locations: Mapping[str, Path], remote: Mapping[str, RemoteFile]
) -> dict[str, Header]:
    def read(file: PlannedFile, advance: Callable[[int], None]) -> Header:
        if file.path not in remote:
            return read_header(locations[file.path], name=file.path)
        # Closed after the header: the connection would otherwise stay open for the rest of the file.
        with contextlib.closing(_generator(remote[file.path].read(0))) as pieces:
            return take_header(pieces, size=file.size, name=file.path)

    # In parallel: each header of a remote file costs a round trip or two.
    headers = run_all(weights, read, advance=lambda _: None, workers=_FETCHES_AT_ONCE)
    return {file.path: header for file, header in zip(weights, headers, strict=True)}


def _generator(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Wrap an iterator as a generator, so that it can be closed before its end."""
    yield from pieces


def _check_size(file: PlannedFile, location: Path) -> None:
    with reading(location):
        size = location.stat().st_size
    if size != file.size:
        raise InvalidCheckpoint(
            f"{file.path} has {size} bytes where the source lists {file.size}",
            hint=f"Remove {location} and fetch the checkpoint again.",
        )


def _documents(files: list[PlannedFile], locations: Mapping[str, Path]) -> dict[str, Any]:
    """The parsed documents beside `config.json` that facts are derived from; malformed ones count as missing."""
    found: dict[str, Any] = {}
    for path in {file.path for file in files} & set(DOCUMENTS) & locations.keys():
        with reading(locations[path]), locations[path].open("rb") as opened:
            data = opened.read(MAX_JSON_BYTES)
        # A tokenizer's file that only its own library understands must not stop a build.
        with contextlib.suppress(ValueError, RecursionError):
            found[path] = json.loads(data)
    return found


def _texts(files: list[PlannedFile], locations: Mapping[str, Path]) -> dict[str, str]:
    texts = {}
    for file in files:
        if states_licence(file.path) and file.path in locations:
            location = locations[file.path]
            # Undecodable bytes are replaced: a licence in another encoding is still recognized by its title.
            with reading(location), location.open("rb") as opened:
                texts[file.path] = opened.read(MAX_BYTES).decode(errors="replace")
    return texts

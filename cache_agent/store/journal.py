"""Journals of running pulls, `partial/<model key>.json`: the progress that a restart keeps.

The journal of our own images is the record, which names every file beforehand. A foreign image's files are unknown
until its layers are read, so its journal lists the contents of each finished layer; the bytes stay in staged layer
files, named after layer and member, until the model's files are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cache_agent.store.disk import read_plain, reading
from cache_agent.store.partials import identity
from modelimage import canonical
from modelimage.bounds import MALFORMED, positive
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.record import RecordFile

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord, LayerContents

PULL_STATE_SCHEMA: Final = "weightyard.dev/harvest/v1"
# More than the limits of foreign images let any layer have.
_MOST_MEMBERS: Final = 1_000_000


def staged_name(layer: Digest, member: int) -> Digest:
    """The name of a layer's member while its own digest is unknown."""
    return Digest.of(f"{layer}/{member}".encode())


@dataclass(frozen=True, slots=True)
class ForeignPullState:
    """Progress of a foreign image's pull: finished layers, and the member count of layers that arrive by ranges.

    Law: `ForeignPullState.parse(s.to_bytes()) == s`.
    """

    key: Digest
    done: Mapping[Digest, LayerContents] = field(default_factory=dict)
    arriving: Mapping[Digest, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return canonical.to_bytes(
            {
                "schema": PULL_STATE_SCHEMA,
                "manifest": str(self.key),
                "done": {str(layer): found.to_json() for layer, found in self.done.items()},
                "arriving": {str(layer): count for layer, count in self.arriving.items()},
            }
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ForeignPullState:
        """Raises InvalidImage."""
        from modelimage.foreign import LayerContents  # noqa: PLC0415

        try:
            done = {Digest.parse(k): LayerContents.parse(v) for k, v in document["done"].items()}
            arriving = {Digest.parse(k): _members(v) for k, v in document["arriving"].items()}
            return cls(Digest.parse(document["manifest"]), done, arriving)
        except (*MALFORMED, WeightyardError) as error:
            raise InvalidImage(f"malformed journal of a foreign image: {error!r}") from error

    @classmethod
    def parse(cls, data: bytes) -> ForeignPullState:
        """Raises InvalidImage."""
        return cls.from_json(canonical.parse(data, what="a journal", most=canonical.MOST_OF_FILES))

    def digests(self) -> set[Digest]:
        """Digests of its files that are known already."""
        return {found.digest for layer in self.done.values() for found in layer.files.values()}

    def staged_files(self) -> set[str]:
        """Names of its staged layer files in `partial/`."""
        finished = {(layer, n) for layer, found in self.done.items() for n in found.files}
        # Any member of a layer that arrives by ranges may be staged already.
        arriving = {(layer, n) for layer, count in self.arriving.items() for n in range(count)}
        return {staged_name(layer, number).hex for layer, number in finished | arriving}


def _members(value: object) -> int:
    """A number of members. Raises ValueError for more than any layer has."""
    count = positive(value)
    # Each is looked for by its name: a damaged number must not keep a start busy for ever.
    if count > _MOST_MEMBERS or (count == 0 and value != 0):
        raise ValueError(f"a number of members: {value!r:.40}")
    return count


@dataclass(frozen=True, slots=True)
class JournalRefs:
    """The files that a pull's journal protects from cleanup.

    `files` in `files/`, `partials` by name in `partial/`, each with the file that it becomes where that is known.
    """

    key: Digest
    files: frozenset[Digest]
    partials: Mapping[str, RecordFile | None]

    @classmethod
    def of(cls, journal: AnyRecord | ForeignPullState) -> JournalRefs:
        if isinstance(journal, ForeignPullState):
            return cls(
                journal.key,
                frozenset(journal.digests()),
                dict.fromkeys(journal.staged_files(), None),
            )
        return cls(
            journal.key,
            frozenset(file.digest for file in journal.files),
            {identity(file).hex: file for file in journal.files},
        )


def read_journal(path: Path) -> AnyRecord | ForeignPullState:
    """Read a pull's journal. Raises InvalidImage, DiskFailed."""
    with reading(path):
        data = read_plain(path)
    document = canonical.parse(data, what="a journal", most=canonical.MOST_OF_FILES)
    if document.get("schema") == PULL_STATE_SCHEMA:
        return ForeignPullState.from_json(document)
    from modelimage.foreign import parse_record  # noqa: PLC0415

    return parse_record(data)


def read_claims(path: Path) -> JournalRefs:
    """Read the files that a journal protects. Raises InvalidImage, DiskFailed."""
    return JournalRefs.of(read_journal(path))

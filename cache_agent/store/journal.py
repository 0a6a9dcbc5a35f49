"""The marks of pulls under way, `partial/<model key>.json`: what they have so far, so that a restart keeps it.

A pull of our own images writes down the record that it works from, which names every file beforehand. Of a foreign
image nothing is known before its layers were read, so its pull writes down what each finished layer held; the bytes
wait in spools named after layer and member until the model's files are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cache_agent.store.disk import reading
from cache_agent.store.partials import identity
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.foreign import AnyRecord, LayerContents, parse_record
from modelimage.record import RecordFile

PULL_STATE_SCHEMA: Final = "weightyard.dev/harvest/v1"


def staged_name(layer: Digest, member: int) -> Digest:
    """What a member of a layer goes by while its own digest isn't known."""
    return Digest.of(f"{layer}/{member}".encode())


@dataclass(frozen=True, slots=True)
class ForeignPullState:
    """What a pull of a foreign image has: finished layers, and how many members those have that come by ranges.

    Law: `Harvest.parse(h.to_bytes()) == h`.
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
        try:
            done = {Digest.parse(k): LayerContents.parse(v) for k, v in document["done"].items()}
            arriving = {Digest.parse(k): int(v) for k, v in document["arriving"].items()}
            return cls(Digest.parse(document["manifest"]), done, arriving)
        except (KeyError, TypeError, ValueError, AttributeError, WeightyardError) as error:
            raise InvalidImage(f"malformed journal of a foreign image: {error!r}") from error

    @classmethod
    def parse(cls, data: bytes) -> ForeignPullState:
        """Raises InvalidImage."""
        return cls.from_json(canonical.parse(data, what="a journal"))

    def digests(self) -> set[Digest]:
        """The files that it has digests of."""
        return {found.digest for layer in self.done.values() for found in layer.files.values()}

    def staged_files(self) -> set[str]:
        """The names of its spools in `partial/`."""
        finished = {(layer, n) for layer, found in self.done.items() for n in found.files}
        arriving = {(layer, n) for layer, count in self.arriving.items() for n in range(count)}
        return {staged_name(layer, number).hex for layer, number in finished | arriving}


@dataclass(frozen=True, slots=True)
class JournalRefs:
    """What the journal of one pull keeps from being cleared away.

    `files` in `files/`, `partials` by their names in `partial/`, with the file that each becomes where that is known.
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
    """The journal of a pull. Raises InvalidImage, DiskFailed."""
    with reading(path):
        data = path.read_bytes()
    document = canonical.parse(data, what="a journal")
    if document.get("schema") == PULL_STATE_SCHEMA:
        return ForeignPullState.from_json(document)
    return parse_record(data)


def read_claims(path: Path) -> JournalRefs:
    """What a journal claims. Raises InvalidImage, DiskFailed."""
    return JournalRefs.of(read_journal(path))

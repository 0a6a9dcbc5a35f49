"""Makes a Hugging Face cache directory from hard links, for programs with `HF_HUB_OFFLINE=1`. Copies no bytes.

The layout is huggingface_hub's: `models--org--name/{refs/main, snapshots/<commit>/<file>}`. It allows plain files in
snapshots (for systems without symbolic links), so there is no `blobs/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelimage import durable
from modelimage.errors import InvalidInput, NotWritable
from modelimage.hub import HubSnapshot
from modelimage.record import Record


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """A snapshot in an HF cache directory. `linked` counts the new files."""

    repo: str
    commit: str
    path: Path
    linked: int


def make_view(cache: Path, model: Path, record: Record) -> SnapshotView:
    """Link a model's files into `cache`, which must be on the model's filesystem. Existing links stay.

    Raises InvalidInput for a model whose record names no Hub repository and commit; NotWritable, NoSpace.
    """
    found = _snapshot(record)
    repo, revision = found.repository, found.revision
    home = cache / found.directory
    snapshot = home / "snapshots" / revision
    linked = 0
    for file in record.files:
        target = snapshot / file.path
        with durable.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        linked += _link(model / file.path, target)
    # Written last, so that `main` never names an incomplete snapshot.
    ref = home / "refs" / "main"
    with durable.writing(ref):
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(revision)
    return SnapshotView(repo, revision, snapshot, linked)


def _snapshot(record: Record) -> HubSnapshot:
    found = HubSnapshot.of(record)
    if found is None:
        source = record.source[:200] or "an unknown source"
        raise InvalidInput(
            f"the model comes from {source!r}, not from the Hub at a commit",
            hint="Use the model's directory itself: `weightyard mount`, or the path that `pull` prints.",
        )
    return found


def _link(source: Path, target: Path) -> int:
    try:
        target.hardlink_to(source)
    except FileExistsError:
        # From an earlier view of the model, or one that was interrupted.
        if target.samefile(source):
            return 0
        raise NotWritable(
            f"{target} is there already and is another file", hint="Choose an empty directory."
        ) from None
    except OSError as error:
        raise NotWritable(
            f"can't link {target}: {error.strerror}",
            hint="Choose a directory on the filesystem of the cache; nothing is copied.",
        ) from error
    return 1

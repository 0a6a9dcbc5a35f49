"""Custom calibration text: a local file, or a file of a dataset on the Hugging Face Hub.

    hf://ORG/NAME[@REVISION]             the dataset's only text file, or the first of its training split
    hf://ORG/NAME[@REVISION]/PATH        one of its files
    hf://datasets/ORG/NAME...            the same, in the spelling of huggingface-hub's file system

Only plain text, JSON lines and Parquet are accepted, and used unchanged: the record's digest is that of the downloaded
file. The revision is resolved to a commit first. Parsing the text is up to `quantize`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelimage.errors import InvalidInput, NotFound
from modelimage.source_uris import HUB

SUFFIXES: Final = (".parquet", ".jsonl", ".ndjson", ".txt")
# data/train.jsonl, train-00000-of-00012.parquet, plain_text/train/0000.parquet
_FIRST_TRAINING = re.compile(r"(?:.*/)?train(?:/0+|-0+-of-\d+)?\.\w+")
_KIND: Final = "dataset"
_NAMED = re.compile(
    re.escape(HUB)
    + r"(?:datasets/)?(?P<name>\w[\w.-]{0,95}/\w[\w.-]{0,95})"
    + r"(?:@(?P<revision>\w[\w.-]{0,254}))?(?:/(?P<path>.+))?",
    re.ASCII,
)
_HINT: Final = (
    "Write a file's name, hf://ORG/NAME, hf://ORG/NAME@REVISION, or either with /PATH of a file."
)


@dataclass(frozen=True, slots=True)
class DatasetReference:
    """A dataset on the Hub and one of its files; `path` None means its only text."""

    name: str
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB}datasets/{self.name}{revision}" + (f"/{self.path}" if self.path else "")


def parse_dataset(text: str) -> DatasetReference:
    """Parse a dataset reference. Law: `parse_dataset(str(r)) == r`. Raises InvalidInput."""
    match = _NAMED.fullmatch(text)
    if match is None:
        raise InvalidInput(f"not a dataset on the Hub: {text[:200]!r}", hint=_HINT)
    return DatasetReference(match["name"], match["revision"], match["path"])


def calibration_file(given: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The local path of a calibration file, downloaded if it is on the Hub.

    Raises InvalidInput, NotFound, AccessDenied, Unreachable, RateLimited, RemoteRefused, and NoSpace and
    NotWritable for the cache's disk.
    """
    if given.startswith(HUB):
        return _fetch(parse_dataset(given), endpoint, cache)
    if "://" in given:
        raise InvalidInput(f"calibration text can't be read from {given[:200]}", hint=_HINT)
    path = Path(given)
    if not path.is_file():
        raise NotFound(f"there is no calibration file {path}", hint=_HINT)
    return path


def _fetch(reference: DatasetReference, endpoint: str | None, cache: Path | None) -> Path:
    # On first use: every start of the command imports this module, and the library takes a quarter of a second.
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415

    from builder.sources.hub import mapped_errors  # noqa: PLC0415

    with mapped_errors(reference):
        info = HfApi(endpoint=endpoint).dataset_info(reference.name, revision=reference.revision)
    files = [each.rfilename for each in info.siblings or ()]
    path = _chosen(reference, files)
    with mapped_errors(reference, path):
        # By the resolved commit, not by the branch: the branch may move between listing and download.
        found = hf_hub_download(
            reference.name, path, repo_type=_KIND, revision=info.sha, endpoint=endpoint,
            cache_dir=cache,
        )  # fmt: skip
    return Path(found)


def _chosen(reference: DatasetReference, files: list[str]) -> str:
    """Choose the file. Raises InvalidInput if the reference is ambiguous, NotFound if there is none."""
    texts = [path for path in files if path.lower().endswith(SUFFIXES)]
    training = [path for path in texts if _FIRST_TRAINING.fullmatch(path)]
    # The only text, else the only file that starts the training split; any other choice would be a guess.
    for only in (texts, training):
        if reference.path is None and len(only) == 1:
            return only[0]
    listed = f"It has {', '.join(texts[:10])}." if texts else f"Choose one with {_known()} files."
    if reference.path is None:
        what = "has several files of text" if texts else "has no file of text"
        raise InvalidInput(
            f"{reference} {what}", hint=f"Name a file. {listed}" if texts else listed
        )
    if reference.path not in files:
        raise NotFound(f"{reference}: no such file in the dataset", hint=listed)
    if reference.path not in texts:
        raise InvalidInput(
            f"{reference} is not {_known()}", hint="Convert it to JSON lines, each with a `text`."
        )
    return reference.path


def _known() -> str:
    return ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"

"""Object stores accept keys that are no paths: each is refused with the option that leaves it out, or is no file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from builder.build import BuildOptions, BuildTools, build
from builder.destination import open_destination
from builder.digest_cache import DigestCache
from builder.sources.objects import BucketReference, ObjectSource, StoredObject, Write
from builder.survey import survey
from modelimage.access import Access
from modelimage.errors import InvalidCheckpoint
from modelimage.ranges import ByteRange
from modelimage.reference import LayoutReference
from tests.builder.checkpoints import single, weights
from tests.builder.reports import Remembering


class MemoryStore:
    """An ObjectStore of bytes by key."""

    endpoint = "memory"

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects

    def objects(self, folder: str) -> Iterator[StoredObject]:
        for key, data in self._objects.items():
            if key.startswith(folder):
                yield StoredObject(key, len(data), "1", str(len(data)))

    def read(self, wanted: StoredObject, span: ByteRange, write: Write) -> None:
        write(self._objects[wanted.key][span.start : span.stop])

    def checksum(self, wanted: StoredObject) -> None:
        return None


def bucket(tmp_path: Path, more: Mapping[str, bytes]) -> ObjectSource:
    checkpoint = single(tmp_path / "checkpoint")
    objects = {path.name: path.read_bytes() for path in checkpoint.iterdir()} | dict(more)
    store = MemoryStore({f"models/tiny/{key}": data for key, data in objects.items()})
    return ObjectSource(BucketReference("s3://", "bucket", "models/tiny"), store, tmp_path / "work")


@pytest.mark.parametrize(
    "key",
    ["/config.json", "a//b.json", "./b.json", "x/../b.json", "a\nb.json", "\x01.json", "a\\b.json",
     "config.json/x.json", "models/x.json", "é" * 300 + ".json"],
)  # fmt: skip
def test_a_key_that_is_no_path_can_be_left_out_as_the_hint_says(tmp_path: Path, key: str) -> None:
    source = bucket(tmp_path, {key: b"{}"})
    try:
        selection = survey(source).selection
    except InvalidCheckpoint as error:
        words = shlex.split(str(error.hint))
        excluded = words[words.index("--exclude") + 1]
        selection = survey(source, exclude=(excluded,)).selection
    # What is left out is listed with its reason.
    assert key in selection.ignored or "config.json" in selection.ignored
    assert selection.weights == ["model.safetensors"]


def test_a_folders_mark_is_no_file_that_a_document_names(tmp_path: Path) -> None:
    more = {
        "config.json": b'{"voices": "voices"}',
        "voices": b"",
        "voices/model.safetensors": weights({"w": (4,)}),
    }
    selection = survey(bucket(tmp_path, more)).selection
    assert "voices" in selection.ignored
    assert "voices/model.safetensors" in selection.roles


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "vae/model.safetensors"])
@pytest.mark.parametrize("staged", [True, False])
def test_a_pointer_in_a_bucket_is_refused(tmp_path: Path, path: str, *, staged: bool) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
    source = bucket(tmp_path, {path: pointer + b"\nsize 12345\n"})
    layout = LayoutReference(tmp_path / "out", "v1")
    tools = BuildTools(DigestCache(tmp_path / "digests"), tmp_path / "work", Remembering())
    with pytest.raises(InvalidCheckpoint, match=f"{path} is a Git LFS pointer"):
        build(source, open_destination(layout, Access()), BuildOptions(staged=staged), tools)
    assert not layout.path.exists()


def test_a_bucket_of_models_is_refused_with_the_choice(tmp_path: Path) -> None:
    model = {path.name: path.read_bytes() for path in single(tmp_path / "one").iterdir()}
    objects = {f"{name}/{key}": data for name in ("llama", "qwen") for key, data in model.items()}
    store = MemoryStore(objects)
    source = ObjectSource(BucketReference("s3://", "bucket"), store, tmp_path / "work")
    with pytest.raises(InvalidCheckpoint, match="llama, qwen") as caught:
        survey(source)
    assert "s3://bucket/qwen." in str(caught.value.hint)

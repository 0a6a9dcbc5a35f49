"""What the tests of foreign kinds share: describing an image, and pulling it both ways."""

from __future__ import annotations

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.foreign import ForeignModel, Packing, describe_foreign
from tests.modelimage.foreign.images import Entry, Maker, pull, pull_ranges

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 1500, "sub/README.md": b""}
SOME = Descriptor("application/json", Digest.of(b"{}"), 2).to_json()
PACKINGS = [Packing.TAR, Packing.TAR_GZIP, Packing.TAR_ZSTD]


def described(maker: Maker, name: str = "latest") -> ForeignModel:
    return describe_foreign(maker.layout, maker.layout.resolve(name))


def check_pull(maker: Maker, model: ForeignModel, files: dict[str, bytes]) -> ForeignModel:
    """Both ways to pull give the files; the model key is the manifest's digest."""
    listed, pulled = pull(maker.layout, model)
    assert pulled == files
    assert [(file.path, file.size) for file in listed.files] == sorted(
        (path, len(data)) for path, data in files.items()
    )
    assert listed.key == model.manifest.digest
    if model.is_listed:
        assert pull_ranges(maker.layout, model) == files
        assert model.files == listed.files
    return listed


def entries(files: dict[str, bytes]) -> list[Entry]:
    return [Entry(name, data) for name, data in files.items()]

"""Our own images read as if they were foreign: what a tool that knows nothing of records makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelimage.descriptor import LINUX_ARM64
from modelimage.digest import Digest
from modelimage.foreign import ImageFormat, describe_foreign, resolve_ours
from modelimage.layout import Layout
from tests.builder.building import build_here
from tests.builder.checkpoints import single
from tests.modelimage.foreign.images import pull, pull_ranges


@pytest.mark.parametrize(
    ("tag", "kind"), [("v1", ImageFormat.IMAGE), ("v1-modelpack", ImageFormat.MODELPACK)]
)
def test_both_manifests_hold_what_the_record_says(
    tmp_path: Path, tag: str, kind: ImageFormat
) -> None:
    built = build_here(single(tmp_path / "model"), f"oci:{tmp_path / 'out'}:v1", tmp_path)
    (record,) = built.records
    layout = Layout(tmp_path / "out")
    root = layout.resolve(tag)
    assert resolve_ours(layout, root) is not None
    model = describe_foreign(layout, root, platform=LINUX_ARM64)
    assert model.kind is kind
    files = pull_ranges(layout, model)
    assert pull(layout, model)[1] == files
    expected = {file.path: file.digest for file in record.files}
    assert {path: Digest.of(data) for path, data in files.items()} == expected
    for layer in record.layers:
        assert model.layer(layer.digest).literals is not None

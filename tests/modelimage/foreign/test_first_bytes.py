"""Layers whose media type lies are read by their first bytes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from modelimage.foreign import Packing
from modelimage.foreign.first_bytes import packing_of
from modelimage.mediatypes import OCI_CONFIG
from tests.modelimage.foreign.describing import FILES, PACKINGS, check_pull, described
from tests.modelimage.foreign.images import OCI_TAR, Maker, compress, files_tar


@pytest.mark.parametrize(("stated", "real"), list(product(PACKINGS, PACKINGS)))
def test_a_layer_is_read_by_its_first_bytes(tmp_path: Path, stated: Packing, real: Packing) -> None:
    maker, plain = Maker(tmp_path), files_tar(FILES)
    layer = maker.blob(OCI_TAR + stated.value.removeprefix("tar"), compress(plain, real))
    diff_ids = [str(maker.blob(OCI_TAR, plain).digest)]
    config = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    maker.manifest(maker.json(OCI_CONFIG, config), [layer])
    model = described(maker)
    assert [layer.packing for layer in model.layers] == [real]
    check_pull(maker, model, FILES)


@pytest.mark.parametrize("written", ["{}; charset=utf-8", "{} ;a=b", "upper"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_type_is_the_same_with_parameters_and_in_any_case(
    tmp_path: Path, packing: Packing, written: str
) -> None:
    maker, plain = Maker(tmp_path), files_tar(FILES)
    kind = OCI_TAR + packing.value.removeprefix("tar")
    stated = kind.upper() if written == "upper" else written.format(kind)
    layer = maker.blob(stated, compress(plain, packing))
    diff_ids = [str(maker.blob(OCI_TAR, plain).digest)]
    config = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    maker.manifest(maker.json(OCI_CONFIG, config), [layer])
    check_pull(maker, described(maker), FILES)


@pytest.mark.parametrize(
    ("head", "packing"),
    [
        (b"\x1f\x8b\x08\x00", Packing.TAR_GZIP),
        (b"\x28\xb5\x2f\xfd\x00", Packing.TAR_ZSTD),
        (b"\x50\x2a\x4d\x18\x00", Packing.TAR_ZSTD),
        (b"\x60\x2a\x4d\x18\x00", None),
        (files_tar(FILES)[:512], Packing.TAR),
        (bytes(512), Packing.TAR),
        (bytes(511), None),
        (b"", None),
        (b"BZh9" + bytes(508), None),
    ],
)
def test_the_packing_of_first_bytes(head: bytes, packing: Packing | None) -> None:
    assert packing_of(head) is packing

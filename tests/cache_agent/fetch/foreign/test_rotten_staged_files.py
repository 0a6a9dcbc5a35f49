"""Bits that rot in a staged layer file that its notes vouch for are fetched again within the same pull."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelimage.errors import WeightyardError
from modelimage.foreign import Packing
from modelimage.record import CHUNK_SIZE
from tests.cache_agent.faults import BreaksAfter
from tests.cache_agent.fetch.foreign.layouts import Tampering
from tests.cache_agent.fetch.foreign.test_pull_foreign import IMAGE, layers_of
from tests.cache_agent.fetch.test_crash import damage
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import noise
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Maker, files_tar

LARGE = noise(2 * CHUNK_SIZE + 1000, 5)


@pytest.mark.parametrize("finished", [False, True], ids=["layer begun", "layer finished"])
def test_rot_is_mended_within_the_pull(
    open_node: NodeFactory, tmp_path: Path, finished: bool
) -> None:
    maker = Maker(tmp_path / "layout")
    maker.image(
        files_tar({"models/large": LARGE}),
        files_tar({"models/other": noise(90_000, 4)}),
        packing=Packing.TAR,
    )
    large, other = layers_of(maker.layout)
    broken = (
        Tampering(maker.layout, victim=other)
        if finished
        else BreaksAfter(maker.layout, large, CHUNK_SIZE + (8 << 20))
    )
    node = open_node({"reg.test/m": broken})
    with pytest.raises(WeightyardError):
        pull(node, IMAGE)
    staged = max(node.store.first.paths.partial.glob("*.data"), key=lambda p: p.stat().st_size)
    damage(staged, 50)
    node.close()
    again = open_node({"reg.test/m": maker.layout})
    assert files_of(pull(again, IMAGE).path) == {"large": LARGE, "other": noise(90_000, 4)}
    assert again.check().findings == []

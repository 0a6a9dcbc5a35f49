"""What a pull leaves that ends early is kept for the next try, but never in the way of another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_agent.store.partials import identity
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.errors import NoSpace, Unreachable
from modelimage.foreign import Packing
from tests.cache_agent.faults import BreaksAfter
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import noise, simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Maker, files_tar


@pytest.mark.parametrize(("budget", "kept"), [(2_000_000, True), (800_000, False)])
def test_what_a_broken_pull_left_makes_room_where_another_needs_it(
    open_node: NodeFactory, budget: int, kept: bool
) -> None:
    image, record, contents = simple_image(weights=[200_000, 50_000], seed=1)
    other, _, others = simple_image(weights=[260_000], seed=2)
    large = max(record.files, key=lambda file: (file.path.startswith("model"), file.size))
    broken = BreaksAfter(image, large.layer, 1000)
    node = open_node(
        {"reg.test/m": broken, "reg.test/o": other},
        limits=SpaceLimits(Amount(bytes=budget), Amount()),
    )
    with pytest.raises(Unreachable):
        pull(node)
    partial = node.store.first.paths.partial_data(identity(large))
    assert partial.exists()
    assert files_of(pull(node, "reg.test/o:v1").path) == others
    assert partial.exists() == kept
    open_node.images["reg.test/m"] = image
    assert files_of(pull(node).path) == contents
    assert node.check().findings == []


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_ZSTD])
def test_a_foreign_image_takes_the_place_of_what_a_broken_pull_left(
    open_node: NodeFactory, tmp_path: Path, packing: Packing
) -> None:
    image, record, _ = simple_image(weights=[200_000, 50_000], seed=1)
    large = max(record.files, key=lambda file: (file.path.startswith("model"), file.size))
    maker = Maker(tmp_path / "layout")
    others = {"config.json": b"{}", "model.safetensors": noise(560_000, 2)}
    maker.image(files_tar({f"models/{n}": d for n, d in others.items()}), packing=packing)
    node = open_node(
        {"reg.test/m": BreaksAfter(image, large.layer, 1000), "reg.test/o": maker.layout},
        limits=SpaceLimits(Amount(bytes=700_000), Amount()),
    )
    with pytest.raises(Unreachable):
        pull(node)
    assert files_of(pull(node, "reg.test/o:latest").path) == others
    assert not list(node.store.first.paths.partial.iterdir())
    assert node.check().findings == []


def test_what_a_pull_has_already_reserved_and_staged_stays(open_node: NodeFactory) -> None:
    space = open_node({}, limits=SpaceLimits(Amount(bytes=1000), Amount())).store.first.space
    mine, stale = (space.paths.partial / f"{name}.data" for name in ("mine", "stale"))
    mine.write_bytes(bytes(400))
    stale.write_bytes(bytes(400))
    with space.reserve(0) as own:
        with space.reserve(0), pytest.raises(NoSpace):
            space.reserve(500, resumes={"mine"}, beside=own)
        assert stale.exists()
        with space.reserve(500, resumes={"mine"}, beside=own):
            assert mine.exists()
            assert not stale.exists()
    mine.unlink()


def test_a_pull_that_goes_on_keeps_its_own_partials(open_node: NodeFactory) -> None:
    """Even where there is too little room for it: it is refused, and goes on when there is."""
    image, record, contents = simple_image(weights=[200_000, 50_000], seed=1)
    large = max(record.files, key=lambda file: (file.path.startswith("model"), file.size))
    broken = BreaksAfter(image, large.layer, 1000)
    node = open_node({"reg.test/m": broken}, limits=SpaceLimits(Amount(bytes=2_000_000), Amount()))
    for _ in range(2):
        with pytest.raises(Unreachable):
            pull(node)
        assert node.store.first.paths.partial_data(identity(large)).exists()
    open_node.images["reg.test/m"] = image
    assert files_of(pull(node).path) == contents

"""What a pull leaves that ends early is kept for the next try, but never in the way of another model."""

from __future__ import annotations

import pytest

from cache_agent.store.partials import identity
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.errors import Unreachable
from tests.cache_agent.faults import BreaksAfter
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull


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

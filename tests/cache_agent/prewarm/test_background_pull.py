"""A pull that nobody waits for yet: held to its caps until somebody does, and never at others' expense."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cache_agent.fetch.values import PullRequest
from cache_agent.sources.throttle import Throttle
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.errors import NoSpace
from modelimage.foreign import Packing
from modelimage.reference import parse_image
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Maker, files_tar
from tests.servers.process import wait_until

IMAGE = parse_image("reg.test/m:v1")


def crawl() -> Throttle:
    """Three bytes a day."""
    return Throttle(3 / 86400, time.monotonic)


def test_who_waits_for_a_model_isn_t_held_to_the_caps_of_its_pre_warming(
    open_node: NodeFactory,
) -> None:
    image, record, _ = simple_image(weights=[5000])
    node = open_node({"reg.test/m": image})
    ahead = node.pull(PullRequest(IMAGE, priority=50, caps=(crawl(),)))
    wait_until(lambda: image.requests, what="first request")
    assert ahead.result(0.3) is None
    assert pull(node).model.key == record.key
    done = ahead.result()
    assert done is not None
    assert done.fetched == ahead.snapshot().total


def test_a_capped_pull_can_be_cancelled_at_once(open_node: NodeFactory) -> None:
    image, _, _ = simple_image(weights=[5000])
    node = open_node({"reg.test/m": image})
    ahead = node.pull(PullRequest(IMAGE, priority=50, caps=(crawl(),)))
    assert ahead.result(0.1) is None
    ahead.cancel()
    with pytest.raises(Exception, match="cancel"):
        ahead.result()


def test_pre_warming_takes_free_space_only(open_node: NodeFactory) -> None:
    first, record, _ = simple_image(weights=[50_000], seed=1)
    second, _, _ = simple_image(weights=[50_000], seed=2)
    limits = SpaceLimits(Amount.parse("500000"), Amount.parse("0"))
    node = open_node({"reg.test/m": first, "reg.test/n": second}, limits=limits)
    pull(node)
    with pytest.raises(NoSpace):
        node.pull(PullRequest(parse_image("reg.test/n:v1"), evicting=False)).result()
    assert [model.key for model in node.store.models.all()] == [record.key]
    assert pull(node, "reg.test/n:v1").model.key != record.key


@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_ZSTD])
def test_pre_warming_a_foreign_image_takes_free_space_only(
    open_node: NodeFactory, tmp_path: Path, packing: Packing
) -> None:
    first, record, _ = simple_image(weights=[50_000], seed=1)
    maker = Maker(tmp_path / "layout")
    # Zeros: a compressed layer is small, and its files aren't.
    maker.image(
        files_tar({"models/config.json": b"{}", "models/m.bin": bytes(400_000)}), packing=packing
    )
    limits = SpaceLimits(Amount.parse("500000"), Amount.parse("0"))
    node = open_node({"reg.test/m": first, "reg.test/n": maker.layout}, limits=limits)
    pull(node)
    with pytest.raises(NoSpace):
        node.pull(PullRequest(parse_image("reg.test/n:latest"), evicting=False)).result()
    assert [model.key for model in node.store.models.all()] == [record.key]
    assert pull(node, "reg.test/n:latest").model.key != record.key

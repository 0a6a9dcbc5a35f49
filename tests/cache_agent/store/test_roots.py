"""Several roots as one store: where models go, and that each is whole, found, leased and proven where it is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.values import PullRequest
from cache_agent.node.health import Health
from cache_agent.sources.source import Tier
from cache_agent.store.placement import RootFacts, choose_root
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.values import Holder, Use
from modelimage.digest import Digest
from modelimage.errors import InUse, InvalidInput, NoSpace
from modelimage.reference import parse_image
from tests.cache_agent.faults import Gate
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import MemoryImage, make_record, noise, simple_image
from tests.cache_agent.nodes import NodeFactory, pull, service_of

ROOM = SpaceLimits(Amount(bytes=1_000_000), Amount())
FACTS = st.builds(
    RootFacts,
    headroom=st.integers(-50, 100),
    evictable=st.integers(0, 100),
    held=st.integers(0, 50),
    home=st.booleans(),
)


@pytest.fixture
def more(tmp_path: Path) -> tuple[Path, ...]:
    return (tmp_path / "second", tmp_path / "third")


@given(roots=st.lists(FACTS, min_size=1, max_size=5), size=st.integers(50, 120))
def test_a_model_goes_home_else_where_it_fits_else_where_most_is_left(
    roots: list[RootFacts], size: int
) -> None:
    chosen = roots[choose_root(roots, size)]
    assert chosen.home or not any(root.home for root in roots)
    rivals = [root for root in roots if root.home == chosen.home]
    fits = [root for root in rivals if root.left(size) >= 0]
    makes_room = [root for root in rivals if root.left(size) + root.evictable >= 0]
    among = fits or makes_room or rivals
    assert chosen in among
    assert chosen.headroom + 2 * chosen.held == max(r.headroom + 2 * r.held for r in among)


def test_models_spread_over_roots_and_each_is_whole_on_one(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    images = {f"reg.test/m{n}": simple_image(weights=[300_000], seed=n) for n in range(3)}
    node = open_node({k: v[0] for k, v in images.items()}, limits=ROOM, extra_roots=more)
    homes = set()
    for name, (_, record, contents) in images.items():
        path = pull(node, f"{name}:v1").path
        assert files_of(path) == contents
        home = node.store.models.require_store(record.key)
        assert path.is_relative_to(home.paths.root)
        assert node.store.files.path(record.files[0].digest).is_file()
        homes.add(home.paths.root)
    assert homes == {open_node.root, *more}
    view = service_of(node).check()
    assert (view.models, view.findings) == (3, [])
    report = service_of(node).space()
    assert [root.models for root in report.roots] == [1, 1, 1]
    assert report.own == sum(root.own for root in report.roots)


def test_a_model_that_shares_files_joins_them_while_there_is_room(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    weights = {"model.safetensors": noise(300_000, 5)}
    images = {}
    for number in range(2):
        record, blobs = make_record([weights, {"config.json": b"%d" % number}])
        images[f"reg.test/m{number}"] = MemoryImage.of([record], blobs)
    node = open_node(images, limits=ROOM, extra_roots=more)
    first, second = (pull(node, f"{name}:v1").model for name in images)
    assert node.store.models.require_store(first.key) is node.store.models.require_store(second.key)


def test_what_another_root_holds_is_copied_and_proven_by_its_layer(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    shared = {"shared.safetensors": noise(400_000, 5)}
    small, small_blobs = make_record([shared])
    large, large_blobs = make_record([shared, {"more.safetensors": noise(500_000, 6)}])
    filler, filler_blobs = make_record([{"filler.safetensors": noise(300_000, 7)}])
    images = {
        "reg.test/small": MemoryImage.of([small], small_blobs),
        "reg.test/large": MemoryImage.of([large], large_blobs),
        "reg.test/filler": MemoryImage.of([filler], filler_blobs),
    }
    alone = open_node(images, limits=ROOM)
    for name in ("small", "filler"):
        alone.store.models.pin(pull(alone, f"reg.test/{name}:v1").model.key, pinned=True)
    alone.close()
    node = open_node({}, limits=ROOM, extra_roots=more)
    handle = node.pull(PullRequest(parse_image("reg.test/large:v1")))
    result = handle.result()
    assert result is not None
    assert result.path.is_relative_to(more[0])
    assert (result.path / "shared.safetensors").read_bytes() == shared["shared.safetensors"]
    assert {tier: size for tier, _, size in handle.snapshot().by_source} == {
        Tier.DISK.value: 400_000,
        Tier.REGISTRY.value: 500_000,
    }


def test_two_pulls_of_one_model_go_to_one_root(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    image, record, contents = simple_image(weights=[300_000])
    gate = Gate(image)
    node = open_node({"reg.test/m": gate}, limits=ROOM, extra_roots=more)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(pull(node).path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.reached.wait()
    gate.opened.set()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert image.fetched() <= sum(layer.size for layer in record.layers)
    assert files_of(results[0]) == contents


def test_leases_pins_and_removals_find_their_root(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    images = {f"reg.test/m{n}": simple_image(weights=[300_000], seed=n)[0] for n in range(2)}
    node = open_node(images, limits=ROOM, extra_roots=more)
    one, two = (pull(node, f"{name}:v1").model for name in images)
    lease = node.store.leases.take(two.key, Holder.parse("manual:me"), "mine")
    assert node.store.leases.all() == [lease]
    with pytest.raises(InUse, match="manual:me"):
        node.store.models.remove(two.key)
    moved = node.store.leases.take(one.key, Holder.parse("manual:me"), "mine")
    assert node.store.leases.all() == [moved], "an id names one lease on the whole node"
    assert node.store.leases.release("mine")
    assert not node.store.leases.release("mine")
    node.store.models.pin(two.key, pinned=True)
    assert node.store.models.find(two.key.hex[:12]).pinned
    assert node.store.models.remove(two.key, unpin=True) > 300_000
    assert [model.key for model in node.store.models.all()] == [one.key]


def test_leases_that_are_asked_for_together_each_find_their_root(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    images = {f"reg.test/m{n}": simple_image(weights=[300_000], seed=n)[0] for n in range(2)}
    node = open_node(images, limits=ROOM, extra_roots=more)
    one, two = (pull(node, f"{name}:v1").model.key for name in images)
    me, missing = Holder.parse("manual:me"), Digest("ab" * 32)
    uses = [Use(one, me, "a"), Use(two, me, "b"), Use(missing, me, "c"), Use(one, me, "d")]
    leases = node.store.leases.take_all(uses)
    assert [lease and (lease.model, lease.id) for lease in leases] == [
        (one, "a"), (two, "b"), None, (one, "d"),
    ]  # fmt: skip
    assert node.store.leases.take_all(uses) == leases
    node.store.leases.take_all([Use(two, me, "a"), Use(missing, me, "b")])
    assert {lease.id: lease.model for lease in node.store.leases.all()} == {
        "a": two,
        "b": two,
        "d": one,
    }
    assert node.store.leases.release_all(["a", "c", "d"]) == [True, False, True]
    assert [lease.id for lease in node.store.leases.all()] == ["b"]
    assert (node.store.leases.take_all([]), node.store.leases.release_all([])) == ([], [])


def test_a_model_that_fits_nowhere_is_refused_with_the_numbers_of_the_roomiest_root(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    images = {
        "reg.test/m": simple_image(weights=[400_000])[0],
        "reg.test/huge": simple_image(weights=[2_000_000], seed=1)[0],
    }
    node = open_node(images, limits=ROOM, extra_roots=more)
    pull(node)
    with pytest.raises(NoSpace, match=r"have 1\.0 MB, evictable 0 B"):
        pull(node, "reg.test/huge:v1")


def test_a_root_whose_disk_fails_is_left_out_and_told(
    open_node: NodeFactory, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("not a directory")
    image, _, contents = simple_image(weights=[5000])
    node = open_node({"reg.test/m": image}, extra_roots=(broken,))
    assert files_of(pull(node).path) == contents
    assert list(node.store.left_out) == [broken]


def test_a_disk_that_dies_takes_only_its_own_models_with_it(
    open_node: NodeFactory, more: tuple[Path, ...]
) -> None:
    images = {f"reg.test/m{n}": simple_image(weights=[300_000], seed=n)[0] for n in range(4)}
    node = open_node(images, limits=ROOM, extra_roots=more[:1])
    models = [pull(node, f"reg.test/m{n}:v1").model for n in range(2)]
    one = next(m for m in models if m.path.is_relative_to(open_node.root))
    two = next(m for m in models if m.path.is_relative_to(more[0]))
    health = Health(node.store, {})
    assert health.checks()["store"] is None
    node.store.stores[1].ledger.close()  # as if its disk were gone
    assert [model.key for model in node.store.models.all()] == [one.key]
    assert node.store.models.get(two.key) is None
    assert node.store.models.find(one.image).key == one.key
    lease = node.store.leases.take(one.key, Holder.parse("manual:me"))
    assert node.store.leases.all() == [lease]
    assert node.store.leases.release(lease.id)
    assert pull(node, "reg.test/m2:v1").path.is_relative_to(open_node.root)
    assert [each.root for each in service_of(node).space().roots] == [str(open_node.root)]
    assert str(more[0]) in (health.checks()["store"] or "")


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_roots_that_overlap_are_refused(open_node: NodeFactory, inside: str) -> None:
    with pytest.raises(InvalidInput, match="overlap"):
        open_node({}, extra_roots=(open_node.root / inside,))

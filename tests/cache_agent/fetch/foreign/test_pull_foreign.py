"""Foreign images in a store: each kind and packing, what is reused, and what wrong images leave behind: nothing."""

from __future__ import annotations

import gzip
import json
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.values import PullRequest, PullState
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.descriptor import LINUX_AMD64, LINUX_ARM64, Platform
from modelimage.digest import Digest
from modelimage.errors import (
    DigestMismatch,
    InvalidImage,
    NoSpace,
    NotFound,
    UnknownVariant,
    WeightyardError,
)
from modelimage.foreign import DerivedRecord, Packing
from modelimage.layout import Layout
from modelimage.mediatypes import OCI_CONFIG
from modelimage.record import CHUNK_SIZE
from modelimage.reference import parse_image
from tests.cache_agent.crashes import KillsAtStep, in_child
from tests.cache_agent.fetch.foreign.layouts import Counting, Tampering
from tests.cache_agent.fetch.test_crash import damage
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import noise
from tests.cache_agent.nodes import NodeFactory, pull
from tests.modelimage.foreign.images import Entry, Maker, compress, files_tar, on, symlink, tar

IMAGE = "reg.test/m:latest"
LARGE = noise(CHUNK_SIZE + 1000, 5)
FILES = {"config.json": b"{}", "empty.txt": b"", "model.safetensors": noise(90_000, 1)}
PACKINGS = [Packing.TAR, Packing.TAR_GZIP, Packing.TAR_ZSTD]


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "layout")


def below(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_modelcar_gives_what_is_below_models(
    open_node: NodeFactory, maker: Maker, packing: Packing
) -> None:
    root = maker.image(
        files_tar({**below("models", {**FILES, "gone": b"x"}), "etc/passwd": b"root"}),
        tar([Entry("models/.wh.gone"), symlink("models/link", "model.safetensors")]),
        packing=packing,
    )
    node = open_node({"reg.test/m": maker.layout})
    result = pull(node, IMAGE)
    assert files_of(result.path) == {**FILES, "link": FILES["model.safetensors"]}
    assert result.model.key == root.digest
    record = DerivedRecord.parse((result.path / "weightyard.json").read_bytes())
    assert record.manifest == root.digest
    for file in record.files:
        assert node.store.first.paths.file(file.digest).stat().st_mode & 0o777 == 0o444
    assert not list(node.store.first.paths.partial.iterdir())


@pytest.mark.parametrize("packing", [None, *PACKINGS])
def test_a_modelpack_of_every_packing(
    open_node: NodeFactory, maker: Maker, packing: Packing | None
) -> None:
    kind = "application/vnd.cncf.model.weight.v1."
    layers = []
    for name, data in FILES.items():
        if packing is None:
            layers.append(maker.blob(f"{kind}raw", data, {"org.cncf.model.filepath": name}))
        else:
            blob = compress(files_tar({name: data}), packing)
            layers.append(maker.blob(f"{kind}{packing.value}", blob))
    maker.manifest(
        maker.json("application/vnd.cncf.model.config.v1+json", {}),
        layers,
        artifactType="application/vnd.cncf.model.manifest.v1+json",
    )
    assert files_of(pull(open_node({"reg.test/m": maker.layout}), IMAGE).path) == FILES


def test_a_docker_model_and_a_modelkit(open_node: NodeFactory, maker: Maker) -> None:
    gguf = noise(70_000, 9)
    maker.manifest(
        maker.json("application/vnd.docker.ai.model.config.v0.1+json", {}),
        [maker.blob("application/vnd.docker.ai.gguf.v3", gguf)],
        tag="docker",
    )
    kit = {"model": {"name": "m", "path": "weights"}}
    maker.manifest(
        maker.json("application/vnd.kitops.modelkit.config.v1+json", kit),
        [
            maker.blob(
                "application/vnd.kitops.modelkit.model.v1.tar+gzip",
                gzip.compress(files_tar(below("weights", FILES))),
            )
        ],
        tag="kit",
    )
    node = open_node({"reg.test/m": maker.layout})
    assert files_of(pull(node, "reg.test/m:docker").path) == {"model.gguf": gguf}
    assert files_of(pull(node, "reg.test/m:kit").path) == below("weights", FILES)


def test_a_large_layer_comes_in_ranges_and_its_chunks_are_known_afterwards(
    open_node: NodeFactory, maker: Maker
) -> None:
    maker.image(files_tar({"models/w.safetensors": LARGE, "models/config.json": b"{}"}))
    node = open_node({"reg.test/m": maker.layout})
    result = pull(node, IMAGE)
    assert files_of(result.path) == {"w.safetensors": LARGE, "config.json": b"{}"}
    record = DerivedRecord.parse((result.path / "weightyard.json").read_bytes())
    (large,) = [file for file in record.files if file.size > CHUNK_SIZE]
    assert len(large.chunks) == 2
    stored = node.store.files.get(large.digest)
    assert stored is not None
    assert stored.chunks == large.chunks
    assert record.recipe(large.layer) is not None


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_second_pull_reads_no_layer_again(
    open_node: NodeFactory, maker: Maker, packing: Packing
) -> None:
    maker.image(files_tar(below("models", FILES)), packing=packing)
    reader = Counting(maker.layout)
    node = open_node({"reg.test/m": reader})
    first = pull(node, IMAGE)
    reader.given.clear()
    second = pull(node, IMAGE)
    assert (second.path, second.fetched) == (first.path, 0)
    assert not reader.given.keys() & set(layers_of(maker.layout))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_next_version_fetches_new_layers_only(
    open_node: NodeFactory, maker: Maker, packing: Packing
) -> None:
    weights, base = files_tar(below("models", FILES)), files_tar({"usr/bin/sh": noise(50_000, 3)})
    maker.image(base, weights, packing=packing, tag="v1")
    maker.image(
        base,
        weights,
        files_tar({"models/config.json": b'{"a": 1}'}),
        packing=packing,
        tag="v2",
    )
    node = open_node({"reg.test/m": maker.layout})
    pull(node, "reg.test/m:v1")
    second = pull(node, "reg.test/m:v2")
    assert second.fetched < 20_000
    assert files_of(second.path) == {**FILES, "config.json": b'{"a": 1}'}


def test_a_file_that_was_hidden_before_is_fetched_when_it_shows(
    open_node: NodeFactory, maker: Maker
) -> None:
    lower = files_tar({"models/a": b"lower" * 9000, "models/b": b"b"})
    upper = files_tar({"models/a": b"upper"})
    maker.image(lower, upper, packing=Packing.TAR_GZIP, tag="v1")
    maker.image(lower, packing=Packing.TAR_GZIP, tag="v2")
    node = open_node({"reg.test/m": maker.layout})
    assert files_of(pull(node, "reg.test/m:v1").path) == {"a": b"upper", "b": b"b"}
    assert files_of(pull(node, "reg.test/m:v2").path) == {"a": b"lower" * 9000, "b": b"b"}


def test_an_index_gives_the_image_of_the_nodes_platform(
    open_node: NodeFactory, maker: Maker
) -> None:
    images = []
    for platform in (LINUX_ARM64, LINUX_AMD64, Platform("linux", "s390x")):
        name = platform.architecture.encode()
        built = maker.image(files_tar({"models/which": name}), tag=None)
        images.append(on(built, platform))
    maker.index(images)
    maker.index([images[0], images[2]], tag="others")
    node = open_node({"reg.test/m": maker.layout})
    expected = node.machine.platform.architecture.encode()
    assert files_of(pull(node, IMAGE).path) == {"which": expected}
    if expected == b"amd64":
        with pytest.raises(NotFound, match="linux/amd64"):
            pull(node, "reg.test/m:others")


def test_a_foreign_image_has_no_variants(open_node: NodeFactory, maker: Maker) -> None:
    maker.image(files_tar({"models/a": b"1"}))
    with pytest.raises(UnknownVariant):
        pull(open_node({"reg.test/m": maker.layout}), IMAGE, "int8")


def test_it_is_pinned_listed_checked_scrubbed_and_removed_like_any_model(
    open_node: NodeFactory, maker: Maker
) -> None:
    maker.image(files_tar(below("models", FILES)), packing=Packing.TAR_GZIP)
    node = open_node({"reg.test/m": maker.layout})
    model = pull(node, IMAGE).model
    store = node.store
    home = store.models.require_store(model.key)
    assert store.models.find(IMAGE).key == model.key
    store.models.pin(model.key, pinned=True)
    assert store.models.find(IMAGE).pinned
    assert node.check().findings == []
    scrubber = home.files.scrubber(0.0, lambda count: None)
    assert all(scrubber.scrub(file) is None for file in home.ledger.model_files(model.key))
    store.models.remove(model.key, unpin=True)
    assert store.models.all() == []
    assert store.files.count() == 0


@pytest.mark.parametrize("packing", PACKINGS)
def test_damage_is_repaired_from_the_layer(
    open_node: NodeFactory, maker: Maker, packing: Packing
) -> None:
    maker.image(files_tar({"models/a": b"1", "models/w.safetensors": LARGE}), packing=packing)
    node = open_node({"reg.test/m": maker.layout})
    result = pull(node, IMAGE)
    damage(node.store.first.paths.file(Digest.of(LARGE)), CHUNK_SIZE + 10)
    assert [finding.kind for finding in node.check().findings] == ["wrong bytes"]
    assert all(finding.repaired for finding in node.check(repair=True).findings)
    assert node.check().findings == []
    assert files_of(result.path) == {"a": b"1", "w.safetensors": LARGE}


# -- wrong images ----------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("number", [0, 1], ids=["gives no file", "gives the files"])
def test_wrong_bytes_of_a_layer_are_never_published(
    open_node: NodeFactory, maker: Maker, packing: Packing, number: int
) -> None:
    base, files = {"etc/base": noise(90_000, 2)}, below("models", FILES)
    maker.image(files_tar(base), files_tar(files), packing=packing)
    node = open_node(
        {"reg.test/m": Tampering(maker.layout, victim=layers_of(maker.layout)[number])}
    )
    with pytest.raises((DigestMismatch, InvalidImage)):
        pull(node, IMAGE)
    assert node.store.models.all() == []
    assert node.check().findings == []


@pytest.mark.parametrize("packing", PACKINGS)
def test_wrong_bytes_once_are_fetched_again(
    open_node: NodeFactory, maker: Maker, packing: Packing
) -> None:
    maker.image(files_tar(below("models", FILES)), packing=packing)
    (victim,) = layers_of(maker.layout)
    node = open_node({"reg.test/m": Tampering(maker.layout, victim=victim, times=1)})
    assert files_of(pull(node, IMAGE).path) == FILES


def layers_of(layout: Layout) -> list[Digest]:
    document = json.loads(layout.manifest(layout.resolve("latest")))
    return [Digest.parse(layer["digest"]) for layer in document["layers"]]


def test_a_bomb_is_refused_and_leaves_nothing(open_node: NodeFactory, maker: Maker) -> None:
    bomb = files_tar({"models/zeros": bytes(80 << 20)})
    maker.image(bomb, packing=Packing.TAR_GZIP)
    node = open_node({"reg.test/m": maker.layout})
    with pytest.raises(InvalidImage, match="compression ratio is too high"):
        pull(node, IMAGE)
    assert not list(node.store.first.paths.partial.iterdir())


def test_what_a_layer_inflates_to_is_bounded_by_the_budget(
    open_node: NodeFactory, maker: Maker
) -> None:
    maker.image(files_tar({"models/zeros": bytes(30 << 20)}), packing=Packing.TAR_GZIP)
    limits = SpaceLimits(budget=Amount(20 << 20), min_free=Amount(0))
    node = open_node({"reg.test/m": maker.layout}, limits=limits)
    with pytest.raises((NoSpace, InvalidImage)):
        pull(node, IMAGE)
    assert node.store.first.space.view().own == 0


@pytest.mark.parametrize(
    "entry",
    [
        Entry("models/../../outside", b"x"),
        Entry("/models/absolute", b"x"),
        symlink("models/link", "../../../etc/passwd"),
        Entry("models/back\\slash", b"x"),
    ],
    ids=["dots", "absolute", "link", "backslash"],
)
@pytest.mark.parametrize("packing", [Packing.TAR, Packing.TAR_GZIP])
def test_paths_that_escape_are_refused(
    open_node: NodeFactory, maker: Maker, entry: Entry, packing: Packing
) -> None:
    maker.image(tar([Entry("models/config.json", b"{}"), entry]), packing=packing)
    node = open_node({"reg.test/m": maker.layout})
    with suppress(InvalidImage):
        result = pull(node, IMAGE)
        # A link out of the image may also be left out, as long as nothing comes of it.
        assert files_of(result.path) == {"config.json": b"{}"}
    assert not (node.store.first.paths.root.parent / "outside").exists()


def test_a_truncated_stream_is_refused(open_node: NodeFactory, maker: Maker) -> None:
    whole = gzip.compress(files_tar(below("models", FILES)), mtime=0)
    layer = maker.blob("application/vnd.oci.image.layer.v1.tar+gzip", whole[: len(whole) // 2])
    config = {"rootfs": {"type": "layers", "diff_ids": [str(Digest.of(whole))]}}
    maker.manifest(maker.json(OCI_CONFIG, config), [layer])
    node = open_node({"reg.test/m": maker.layout})
    with pytest.raises((InvalidImage, DigestMismatch)):
        pull(node, IMAGE)
    assert node.store.models.all() == []


# -- crashes ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_killed_at_every_step(memory_root: Path, packing: Packing) -> None:
    """Whatever is there after a kill is sound, and the next pull makes it whole."""
    maker = Maker(memory_root / "layout")
    maker.image(
        files_tar({"models/a": noise(5000, 1), "models/gone": b"1"}),
        files_tar({"models/.wh.gone": b"", "models/b": noise(7000, 2)}),
        packing=packing,
    )
    expected = {"a": noise(5000, 1), "b": noise(7000, 2)}
    step, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        root = memory_root / f"killed-{step}"
        status = in_child(lambda: _session(root, maker, KillsAtStep(at=step)))  # noqa: B023
        _session(root, maker, None, expected)
        step += 1
    assert step > 30


def _session(
    root: Path,
    maker: Maker,
    fault: KillsAtStep | None,
    expected: dict[str, bytes] | None = None,
) -> None:
    with ExitStack() as stack:
        factory = NodeFactory(root, stack)
        images = {"reg.test/m": maker.layout}
        if fault is not None:
            pull(factory(images, observe=fault), IMAGE)
            return
        node = factory(images, boot="another-boot")
        assert node.check().findings == []
        assert files_of(pull(node, IMAGE).path) == expected
        assert node.check().findings == []


def test_finished_layers_and_ranges_survive_a_pull_that_ended_early(
    open_node: NodeFactory, maker: Maker
) -> None:
    maker.image(
        files_tar({"models/large": LARGE}),
        files_tar({"models/bad": noise(90_000, 4)}),
        packing=Packing.TAR,
    )
    good, bad = layers_of(maker.layout)
    node = open_node({"reg.test/m": Tampering(maker.layout, victim=bad)})
    with pytest.raises(WeightyardError):
        pull(node, IMAGE)
    assert node.check().findings == []
    node.close()
    reader = Counting(maker.layout)
    again = open_node({"reg.test/m": reader}, engine=EngineOptions(streams=2))
    result = pull(again, IMAGE)
    assert files_of(result.path) == {"large": LARGE, "bad": noise(90_000, 4)}
    assert reader.given[good] < 100_000


def test_two_pulls_at_once_fetch_each_layer_once(open_node: NodeFactory, maker: Maker) -> None:
    maker.image(files_tar({"models/large": LARGE}), packing=Packing.TAR_ZSTD)
    reader = Counting(maker.layout)
    node = open_node({"reg.test/m": reader})
    handles = [node.pull(PullRequest(parse_image(IMAGE))) for _ in range(3)]
    results = [handle.result() for handle in handles]
    assert len({result.path for result in results if result}) == 1
    assert all(handle.snapshot().state is PullState.DONE for handle in handles)
    (layer,) = layers_of(maker.layout)
    assert reader.given[layer] < len(LARGE) * 1.5

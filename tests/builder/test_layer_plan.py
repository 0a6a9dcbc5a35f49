"""Layers: every file in exactly one, whatever the order; two bundles and the weights; never past the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builder.layer_plan import MAX_WEIGHT_LAYERS, SHARED_ROLES, PlannedFile, plan_layers
from modelimage.record import Role

ROLES = [Role.WEIGHT, Role.CONFIG, *SHARED_ROLES]
NAMES = st.text("abcdef0123456789-", min_size=1, max_size=12)
FILES = st.dictionaries(
    NAMES, st.tuples(st.integers(0, 1 << 40), st.sampled_from(ROLES)), max_size=30
)


def planned(files: dict[str, tuple[int, Role]]) -> list[PlannedFile]:
    return [PlannedFile(path, size, role) for path, (size, role) in files.items()]


@given(files=FILES, data=st.data())
def test_every_file_is_in_exactly_one_layer_whatever_the_order(
    files: dict[str, tuple[int, Role]], data: st.DataObject
) -> None:
    given_files = planned(files)
    layers = plan_layers(data.draw(st.permutations(given_files)))
    assert sorted(file for layer in layers for file in layer.files) == sorted(given_files)
    assert layers == plan_layers(sorted(given_files))


def test_one_layer_per_weight_file_and_two_bundles() -> None:
    files = [
        PlannedFile("b.safetensors", 10, Role.WEIGHT),
        PlannedFile("a.safetensors", 10, Role.WEIGHT),
        PlannedFile("config.json", 1, Role.CONFIG),
        PlannedFile("tokenizer.json", 1, Role.TOKENIZER),
        PlannedFile("README.md", 1, Role.DOC),
    ]
    layers = plan_layers(files)
    assert [[file.path for file in layer.files] for layer in layers] == [
        ["README.md", "tokenizer.json"],
        ["config.json"],
        ["a.safetensors"],
        ["b.safetensors"],
    ]
    assert [layer.role for layer in layers] == [
        Role.TOKENIZER,
        Role.CONFIG,
        Role.WEIGHT,
        Role.WEIGHT,
    ]


@given(st.integers(1, 400))
def test_weight_files_are_grouped_past_the_limit(count: int) -> None:
    files = [PlannedFile(f"{n:05}.safetensors", 1, Role.WEIGHT) for n in range(count)]
    layers = plan_layers(files)
    sizes = [len(layer.files) for layer in layers]
    assert len(layers) == min(count, MAX_WEIGHT_LAYERS)
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert [file for layer in layers for file in layer.files] == files


def test_a_change_of_the_config_leaves_the_shared_bundle_as_it_is() -> None:
    shared = [
        PlannedFile("tokenizer.json", 5, Role.TOKENIZER),
        PlannedFile("README.md", 5, Role.DOC),
    ]
    one = plan_layers([*shared, PlannedFile("config.json", 3, Role.CONFIG)])
    other = plan_layers([*shared, PlannedFile("config.json", 4, Role.CONFIG)])
    assert one[0] == other[0]

"""Names of weight files: sets of shards, variants, and copies in other formats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.weight_names import missing_shards, parse_weight_name


@pytest.mark.parametrize(
    ("path", "base", "variant", "numbers"),
    [
        ("model.safetensors", "model", "", (None, None)),
        ("model-00001-of-00002.safetensors", "model", "", (1, 2)),
        ("model_00000-of-00010.bin", "model", "", (0, 10)),
        ("model.fp16.safetensors", "model", "fp16", (None, None)),
        ("model.fp16-00001-of-00002.safetensors", "model", "fp16", (1, 2)),
        ("model-00001-of-00002.fp16.safetensors", "model", "fp16", (1, 2)),
        ("unet/diffusion_pytorch_model.non_ema.bin", "diffusion_pytorch_model", "non_ema", (None, None)),
        ("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0", "", (None, None)),
    ],
)  # fmt: skip
def test_a_name_is_taken_apart(
    path: str, base: str, variant: str, numbers: tuple[int | None, int | None]
) -> None:
    name = parse_weight_name(path)
    assert (name.base, name.variant, (name.number, name.total)) == (base, variant, numbers)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("pytorch_model-00001-of-00002.bin", "model.safetensors"),
        ("consolidated.00.pth", "model-00001-of-00003.safetensors"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"),
        ("adapter_model.bin", "adapter_model.safetensors"),
    ],
)
def test_other_formats_hold_the_same_weights(path: str, same: str) -> None:
    assert parse_weight_name(path).weights == parse_weight_name(same).weights


@pytest.mark.parametrize("path", ["adapter_model.bin", "colbert_linear.pt", "ema.bin"])
def test_other_weights_are_no_copies(path: str) -> None:
    assert parse_weight_name(path).weights != parse_weight_name("model.safetensors").weights


@given(st.integers(1, 12), st.integers(0, 1), st.data())
def test_each_gap_in_a_set_of_shards_is_found(total: int, first: int, data: st.DataObject) -> None:
    paths = [f"x/model-{n:05}-of-{total:05}.safetensors" for n in range(first, first + total)]
    assert missing_shards(paths) == []
    gone = data.draw(st.sampled_from(paths))
    left = [path for path in paths if path != gone]
    # The lowest number says where the program started to count.
    if left and (first == 1 or gone != paths[0]):
        assert missing_shards(left) == [gone]


def test_sets_are_judged_apart() -> None:
    paths = ["a-00001-of-00001.bin", "a-00001-of-00002.bin", "b/a-00002-of-00002.bin"]
    assert missing_shards(paths) == ["a-00002-of-00002.bin", "b/a-00001-of-00002.bin"]
    assert missing_shards(["model-00001-of-999999.safetensors"]) == [
        "model-00002-of-999999.safetensors"
    ]

"""Which files of a checkpoint are packed, judged by their paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.classify import Ignored, Packed, Pickle, Verdict, classify, select
from modelimage.errors import InvalidCheckpoint
from modelimage.record import Role

EXPECTED: dict[str, Verdict] = {
    "model.safetensors": Packed(Role.WEIGHT),
    "model-00001-of-00002.safetensors": Packed(Role.WEIGHT),
    "2_Dense/model.safetensors": Packed(Role.WEIGHT),
    "config.json": Packed(Role.CONFIG),
    "generation_config.json": Packed(Role.CONFIG),
    "model.safetensors.index.json": Packed(Role.CONFIG),
    "preprocessor_config.json": Packed(Role.CONFIG),
    "tokenizer.json": Packed(Role.TOKENIZER),
    "tokenizer_config.json": Packed(Role.TOKENIZER),
    "tokenizer.model": Packed(Role.TOKENIZER),
    "vocab.txt": Packed(Role.TOKENIZER),
    "merges.txt": Packed(Role.TOKENIZER),
    "qwen.tiktoken": Packed(Role.TOKENIZER),
    "tekken.json": Packed(Role.TOKENIZER),
    "chat_template.jinja": Packed(Role.TOKENIZER),
    "README.md": Packed(Role.DOC),
    "LICENSE": Packed(Role.DOC),
    "USE_POLICY.md": Packed(Role.DOC),
    "modeling_custom.py": Packed(Role.CODE),
    "pytorch_model.bin": Pickle(),
    "consolidated.00.pth": Pickle(),
    ".gitattributes": Ignored("hidden"),
    ".cache/huggingface/x.lock": Ignored("hidden"),
    "optimizer.pt": Ignored("training state"),
    "training_args.bin": Ignored("training state"),
    "pytorch_model.bin.index.json": Ignored("index of pickle weights"),
    "model.gguf": Ignored("weights of another framework"),
    "flax_model.msgpack": Ignored("weights of another framework"),
    "onnx/model.onnx": Ignored("weights of another framework"),
    "onnx/tokenizer.json": Ignored("weights of another framework"),
    "original/consolidated.00.pth": Ignored("the publisher's original copy of the same weights"),
    "weightyard.json": Ignored("the record of the image it was unpacked from"),
}


@pytest.mark.parametrize(("path", "verdict"), EXPECTED.items())
def test_a_path_has_its_verdict(path: str, verdict: Verdict) -> None:
    assert classify(path) == verdict


@given(st.permutations(list(EXPECTED)))
def test_the_order_of_a_listing_changes_nothing(paths: list[str]) -> None:
    assert select(paths) == select(sorted(paths))


def test_pickles_beside_safetensors_are_left_out() -> None:
    selection = select(["model.safetensors", "pytorch_model.bin"])
    assert selection.weights == ["model.safetensors"]
    assert selection.pickles == ()
    assert "pickle" in selection.ignored["pytorch_model.bin"]


def test_pickles_alone_stay_for_the_caller_to_judge() -> None:
    selection = select(["pytorch_model.bin", "config.json"])
    assert selection.weights == []
    assert selection.pickles == ("pytorch_model.bin",)


def test_a_consolidated_copy_is_left_out_beside_shards_and_packed_alone() -> None:
    both = select(["consolidated.safetensors", "model.safetensors"])
    assert both.weights == ["model.safetensors"]
    assert select(["consolidated.safetensors"]).weights == ["consolidated.safetensors"]


def test_exclude_wins_over_include_and_include_over_the_rules() -> None:
    paths = ["model.safetensors", "voices.npz", "extra/data.dat", "README.md"]
    selection = select(paths, include=["*.npz", "*.dat", "README.md"], exclude=["README.md"])
    assert selection.roles["voices.npz"] is Role.CODE
    assert selection.roles["extra/data.dat"] is Role.CODE
    assert selection.ignored == {"README.md": "matches --exclude"}


def test_include_never_packs_a_pickle_or_an_old_record() -> None:
    selection = select(["model.safetensors", "a.bin", "weightyard.json"], include=["*"])
    assert list(selection.roles) == ["model.safetensors"]


def test_include_gives_a_file_of_an_ignored_folder_its_own_role() -> None:
    selection = select(["model.safetensors", "onnx/config.json"], include=["onnx/*"])
    assert selection.roles["onnx/config.json"] is Role.CONFIG


@pytest.mark.parametrize("path", ["models/config.json", "a\\b.json", "a\nb.json", "bad\udcff.json"])
def test_a_path_that_no_image_can_hold_is_refused(path: str) -> None:
    with pytest.raises(InvalidCheckpoint):
        select(["model.safetensors", path])


@pytest.mark.parametrize("vocabulary", ["vocabulary.json", "shared_vocabulary.txt"])
@pytest.mark.parametrize("folder", ["", "ct2/"])
def test_ctranslate2_weights_are_no_pickle(vocabulary: str, folder: str) -> None:
    found = select([f"{folder}model.bin", f"{folder}{vocabulary}", "config.json"])
    assert found.pickles == ()
    assert found.ignored == {f"{folder}model.bin": "weights of another framework"}
    alone = select([f"{folder}model.bin", "config.json", f"other/{vocabulary}"])
    assert alone.pickles == (f"{folder}model.bin",)


@pytest.mark.parametrize("root", ["", "sd/"])
def test_a_pipelines_single_file_holds_its_parts_again(root: str) -> None:
    """Stable Diffusion's repositories have v1-5-pruned.safetensors and .ckpt beside the folders of the parts."""
    parts = [f"{root}unet/diffusion_pytorch_model.safetensors", f"{root}vae/model.safetensors"]
    single = [f"{root}v1-5-pruned.safetensors", f"{root}v1-5-pruned.ckpt"]
    found = select([f"{root}model_index.json", *parts, *single])
    assert found.weights == parts
    assert not found.pickles
    assert {found.ignored[path] for path in single} == {"the pipeline's parts again, in one file"}

    alone = select([f"{root}model_index.json", single[0]])
    assert alone.weights == single[:1]
    unlisted = select([*parts, single[0]])
    assert single[0] in unlisted.weights

"""Whole builds into a layout: what is published, what is skipped the second time, what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.build import BuildOptions
from builder.variants import EvaluationChoices, QuantizeChoices, chosen_variants
from builder.verifier import image_contents, verify_image
from modelimage.digest import Digest
from modelimage.errors import InvalidCheckpoint, NotFound, UnknownVariant
from modelimage.layout import Layout
from modelimage.record import Record, Role
from modelimage.referrers import list_referrers, read_artifact
from modelimage.resolve import resolve_model
from quantize.errors import QualityTooLow
from quantize.quality import MEDIA_TYPE, Comparison, Quality
from tests.builder.building import build_here
from tests.builder.checkpoints import (
    QUANTIZABLE,
    TENSORS,
    quantizable,
    sharded,
    single,
    weights,
    write,
)


def record_of(layout: Path, tag: str = "v1", variant: str | None = None) -> Record:
    return resolve_model(Layout(layout), tag, variant).record


def assert_intact(layout: Path, tag: str = "v1") -> None:
    reader = Layout(layout)
    contents = image_contents(reader, tag)
    assert contents.records
    verify_image(reader, contents, lambda _: None).raise_problems()


def test_a_directory_becomes_an_image(tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    result = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    record = record_of(tmp_path / "out")
    assert record == result.records[0]
    assert {file.path for file in record.files} == {path.name for path in source.iterdir()}
    assert (record.source, record.revision, record.license) == ("local", "", "Apache-2.0")
    assert record.facts.architecture == "LlamaForCausalLM"
    assert [layer.role for layer in record.layers] == [Role.TOKENIZER, Role.CONFIG, Role.WEIGHT]
    assert Layout(tmp_path / "out").tags() == ["v1", "v1-modelpack"]
    assert_intact(tmp_path / "out")


def test_shards_become_a_layer_each(tmp_path: Path) -> None:
    build_here(sharded(tmp_path / "source"), f"oci:{tmp_path}/out:v1", tmp_path)
    record = record_of(tmp_path / "out")
    assert [layer.role for layer in record.layers].count(Role.WEIGHT) == 2
    assert_intact(tmp_path / "out")


def test_empty_files_and_folders_are_packed(tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    write(
        source,
        {
            "2_Dense/config.json": b"{}",
            "2_Dense/model.safetensors": weights({"w": (2, 2)}),
            "empty.txt": b"",
        },
    )
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    paths = {file.path for file in record_of(tmp_path / "out").files}
    assert {"2_Dense/config.json", "2_Dense/model.safetensors", "empty.txt"} <= paths
    assert_intact(tmp_path / "out")


def test_a_second_build_reads_nothing_again(tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    first = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    again = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    assert first.sent.sent > 0
    assert (again.sent.sent, again.sent.held) == (0, first.sent.sent)
    assert again.publication == first.publication


def test_versions_share_what_did_not_change(tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    first = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    (source / "config.json").write_text(json.dumps({"hidden_size": 8}))
    second = build_here(source, f"oci:{tmp_path}/out:v2", tmp_path)
    shared = set(first.records[0].layers) & set(second.records[0].layers)
    assert {layer.role for layer in shared} == {Role.TOKENIZER, Role.WEIGHT}
    assert Layout(tmp_path / "out").tags() == ["v1", "v1-modelpack", "v2", "v2-modelpack"]


def test_weights_that_the_index_does_not_name_stay_out(tmp_path: Path) -> None:
    source = sharded(tmp_path / "source")
    write(source, {"leftover.safetensors": weights(TENSORS)})
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    assert "leftover.safetensors" not in {file.path for file in record_of(tmp_path / "out").files}


class Interrupted(BaseException):
    """Ctrl-C, at a place of the test's choosing."""


def test_an_interrupted_build_shows_nothing_and_the_next_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sharded(tmp_path / "source")
    layout = tmp_path / "out"
    calls = 0
    commit = Layout.put_manifest

    def interrupt(self: Layout, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted
        commit(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Layout, "put_manifest", interrupt)
    with pytest.raises(Interrupted):
        build_here(source, f"oci:{layout}:v1", tmp_path)
    assert Layout(layout).tags() == []
    monkeypatch.undo()
    build_here(source, f"oci:{layout}:v1", tmp_path)
    assert_intact(layout)
    assert not list(layout.rglob(".pending-*"))


@pytest.mark.parametrize("place", ["hash", "publish"])
def test_an_old_tag_stays_when_a_new_build_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    source = single(tmp_path / "source")
    layout = tmp_path / "out"
    before = build_here(source, f"oci:{layout}:v1", tmp_path).publication.tags["v1"]
    (source / "model.safetensors").write_bytes(weights({"other": (4,)}))

    def interrupt(*arguments: object, **named: object) -> None:
        raise Interrupted

    target = "builder.pack.hash_layer" if place == "hash" else "builder.build.send"
    monkeypatch.setattr(target, interrupt)
    with pytest.raises(Interrupted):
        build_here(source, f"oci:{layout}:v1", tmp_path)
    assert Layout(layout).resolve("v1").digest == before
    assert_intact(layout)


def test_variants_share_tokenizer_and_documents(tmp_path: Path) -> None:
    source = quantizable(tmp_path / "source")
    # A module and an adapter, which quantization doesn't touch.
    index = {"metadata": {}, "weight_map": dict.fromkeys(QUANTIZABLE, "model.safetensors")}
    more = {
        "2_Dense/model.safetensors": weights({"linear.weight": (4, 4)}),
        "adapter_model.safetensors": weights({"base_model.x.lora_A.weight": (4, 4)}),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    write(source, more)
    variants = chosen_variants(["int8", "int4"])
    options = BuildOptions(variants=variants, quantize=QuantizeChoices(engine="rtn"))
    result = build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    published, int8, int4 = result.records
    assert [record.variant for record in result.records] == ["bf16", "int8", "int4"]
    assert published.layers[0] == int8.layers[0] == int4.layers[0]
    assert len({record.layers[-1].digest for record in result.records}) == 3
    paths = {file.path for file in published.files}
    assert {file.path for file in int8.files} == {file.path for file in int4.files} == paths
    assert int4.quantization is not None
    assert int4.quantization["scheme"] == "int4"
    assert [record.facts.dtype for record in result.records] == ["bfloat16", "int8", "int4"]
    layout = Layout(tmp_path / "out")
    assert layout.tags() == sorted(
        f"{name}{suffix}" for name in ("v1", "v1-int8", "v1-int4") for suffix in ("", "-modelpack")
    )
    assert resolve_model(layout, "v1", "int8").record == int8
    assert resolve_model(layout, "v1-int4").record == int4
    assert_intact(tmp_path / "out")
    assert not any((tmp_path / "work").iterdir())


def test_the_quality_of_a_variant_is_published_beside_it(tmp_path: Path) -> None:
    source = quantizable(tmp_path / "source")
    options = BuildOptions(("bf16", "int8"), quantize=QuantizeChoices(engine="rtn"))
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    layout = Layout(tmp_path / "out")
    (artifact,) = list_referrers(layout, layout.resolve("v1-int8-modelpack"), MEDIA_TYPE)
    (file,) = read_artifact(layout, artifact)
    quality = Quality.parse(file.data)
    assert (quality.scheme, quality.engine, quality.comparison) == ("int8", "rtn", None)
    assert quality.sqnr.worst > 30
    assert list_referrers(layout, layout.resolve("v1-modelpack")) == []


@pytest.mark.torch
def test_a_gate_judges_a_variant_that_an_earlier_run_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = quantizable(tmp_path / "source")
    measured = Comparison(1.02, 0.01, 0.95, 10.0, 100, Digest.of(b"text"), "test", {})
    monkeypatch.setattr("quantize.evaluate.compare", lambda *_: measured)

    def build(**bounds: float) -> None:
        choices = QuantizeChoices(engine="rtn", evaluation=EvaluationChoices(**bounds))
        options = BuildOptions(("bf16", "int8"), quantize=choices)
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)

    def interrupt(*arguments: object, **named: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("builder.build.send", interrupt)
        with pytest.raises(Interrupted):
            build(max_kl=0.02)
    with pytest.raises(QualityTooLow, match="KL divergence"):
        build(max_kl=0.005)
    assert Layout(tmp_path / "out").tags() == []
    build(max_kl=0.02, max_perplexity_ratio=1.05, min_top1=0.9)
    layout = Layout(tmp_path / "out")
    (artifact,) = list_referrers(layout, layout.resolve("v1-int8-modelpack"))
    assert Quality.parse(read_artifact(layout, artifact)[0].data).comparison == measured


def test_a_broken_off_variant_is_not_quantized_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = quantizable(tmp_path / "source")
    options = BuildOptions(("bf16", "int8"), quantize=QuantizeChoices(engine="rtn"))

    def interrupt(*arguments: object, **named: object) -> None:
        raise Interrupted

    monkeypatch.setattr("builder.build.send", interrupt)
    with pytest.raises(Interrupted):
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    monkeypatch.undo()
    monkeypatch.setattr("quantize.quantizer.quantize_checkpoint", interrupt)
    build_here(source, f"oci:{tmp_path}/out:v1", tmp_path, options)
    assert_intact(tmp_path / "out")


def test_an_unknown_variant_is_refused_before_anything() -> None:
    with pytest.raises(UnknownVariant):
        chosen_variants(["int3"])
    assert chosen_variants([]) == ("bf16",)
    assert chosen_variants(["int4", "bf16", "int4"]) == ("bf16", "int4")


def test_the_index_and_its_shards_must_agree(tmp_path: Path) -> None:
    source = sharded(tmp_path / "source")
    (source / "model-00002-of-00002.safetensors").write_bytes(weights({"other": (4,)}))
    with pytest.raises(InvalidCheckpoint):
        build_here(source, f"oci:{tmp_path}/out:v1", tmp_path)
    with pytest.raises(NotFound):
        Layout(tmp_path / "out").resolve("v1")

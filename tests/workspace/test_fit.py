"""Which variant a GPU gets: never one that doesn't fit or run, always the most accurate on the fewest GPUs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modelimage.errors import UnknownVariant
from modelimage.quantization import Variant
from modelimage.record import ModelFacts
from tests.workspace.samples import GB, facts
from workspace.fit import (
    KV_FP8,
    KV_NATIVE,
    Demand,
    DoesNotFit,
    choose,
    needed_bytes,
    overhead_bytes,
)
from workspace.hardware import (
    GPUS,
    Gpu,
    Hardware,
    compute_dtype,
    find_gpu,
    refusal,
)
from workspace.runtime_spec import Engine
from workspace.schema import Vendor

GIB = 1 << 30
LLAMA_8B = {
    "bf16": facts(),
    "int8": facts(weight_bytes=9 * GB),
    "int4": facts(weight_bytes=6 * GB),
}


AVX512 = frozenset({"avx2", "avx512f"})
AVX2 = frozenset({"avx2"})


def on(gpu: str, count: int = 1) -> Hardware:
    return Hardware(GPUS[gpu], count)


@pytest.mark.parametrize(
    ("hardware", "variant", "gpus"),
    [
        (on("H100"), "bf16", 1),
        (on("L4"), "bf16", 1),
        (on("T4"), "int8", 1),
        (on("RTX-2080-Ti"), "int4", 1),
        (on("V100-16GB", 2), "bf16", 2),  # Volta has no INT8 or INT4 kernels
        (on("B200"), "bf16", 1),
        (Hardware(Gpu("small Blackwell", 14 * GIB, 120), 1), "int4", 1),  # no W8A8 on SM1xx
        (
            Hardware(Gpu("MI50", 16 * GIB, vendor=Vendor.AMD), 2),
            "bf16",
            2,
        ),  # vLLM quantizes on NVIDIA
        (Hardware(memory_bytes=64 * GIB), "bf16", 0),
        (Hardware(memory_bytes=14 * GIB), "int8", 0),
        (Hardware(), "bf16", 0),
        (Hardware(memory_bytes=11 * GIB, cpus=(AVX512,)), "int4", 0),
    ],
)
def test_choices(hardware: Hardware, variant: str, gpus: int) -> None:
    fit = choose(LLAMA_8B, hardware, Demand())
    assert (fit.variant, fit.gpus) == (variant, gpus)


def test_eight_bit_weights_alone_are_for_gpus() -> None:
    candidates = {"int8-w8a16": facts(weight_bytes=9 * GB), "int8": facts(weight_bytes=9 * GB)}
    assert choose(candidates, on("T4"), Demand()).variant == "int8-w8a16"
    assert choose(candidates, Hardware(), Demand()).variant == "int8"
    with pytest.raises(DoesNotFit, match="vLLM serves int8-w8a16 on GPUs only"):
        choose(candidates, Hardware(), Demand(variant=Variant.INT8_W8A16))


def test_a_cpu_without_avx512_passes_over_four_bits_and_says_why() -> None:
    """int4 alone would fit its memory: the model is refused with the reason, and no smaller context is advised."""
    small = Hardware(memory_bytes=11 * GIB, cpus=(AVX2,))
    with pytest.raises(DoesNotFit, match="int4 only on CPUs with AVX-512"):
        choose(LLAMA_8B, small, Demand())
    candidates = {"int4": facts(weight_bytes=6 * GB), "int8": facts(weight_bytes=6 * GB)}
    assert choose(candidates, small, Demand()).variant == "int8"
    candidates = {"int4": facts(weight_bytes=6 * GB), "custom": facts(weight_bytes=6 * GB)}
    fit = choose(candidates, small, Demand())
    assert fit.variant == "custom"
    assert fit.reasons == ("vLLM serves int4 only on CPUs with AVX-512, which is missing here",)


@pytest.mark.parametrize(
    ("hardware", "runs"),
    [
        (Hardware(cpus=(AVX2,)), "one that runs here (bf16, int8)"),
        (on("V100"), "one that runs here (bf16)"),
    ],
)
def test_a_variant_without_kernels_names_those_that_have_them(
    hardware: Hardware, runs: str
) -> None:
    with pytest.raises(DoesNotFit, match="doesn't run here") as caught:
        choose({"int4": LLAMA_8B["int4"]}, hardware, Demand(variant=Variant.INT4))
    assert runs in str(caught.value.hint)


def test_a_published_quantization_without_kernels_is_not_offered_as_16_bits() -> None:
    """Its variant is named bf16, as it isn't one of Weightyard's, and must not be what the hint names."""
    packed = {"bf16": replace(LLAMA_8B["bf16"], quantization="awq")}
    with pytest.raises(DoesNotFit, match="doesn't run here") as caught:
        choose(packed, Hardware(cpus=(AVX2,)), Demand())
    assert "one that runs here (int8)" in str(caught.value.hint)


def test_other_engines_are_not_judged_by_vllms_kernels_on_a_cpu() -> None:
    only = {"int4": LLAMA_8B["int4"]}
    assert choose(only, Hardware(cpus=(AVX2,)), Demand(engine=Engine.LLAMA_CPP)).variant == "int4"


def test_reasons_say_what_was_passed_over() -> None:
    fit = choose(LLAMA_8B, on("T4"), Demand())
    assert fit.reasons == ("bf16 needs 19.9 GB on 1 GPU, each offering 14.5 GB",)


def test_longer_context_takes_a_smaller_variant() -> None:
    assert choose(LLAMA_8B, on("L4"), Demand(context=8192)).variant == "bf16"
    assert choose(LLAMA_8B, on("L4"), Demand(context=65536)).variant == "int8"


def test_asked_variant_and_gpus_are_kept() -> None:
    fit = choose(LLAMA_8B, on("H100", 8), Demand(variant=Variant.INT4, gpus=4))
    assert (fit.variant, fit.gpus) == ("int4", 4)


def test_nothing_fits() -> None:
    with pytest.raises(DoesNotFit) as caught:
        choose(LLAMA_8B, on("T4"), Demand(context=100_000))
    for variant in LLAMA_8B:
        assert f"{variant} needs" in str(caught.value)
    assert "contextLength" in str(caught.value.hint)


def test_context_beyond_the_model() -> None:
    with pytest.raises(DoesNotFit, match="context is 131072 tokens, 200000 are requested"):
        choose(LLAMA_8B, on("H200", 8), Demand(context=200_000))


def test_unknown_variant() -> None:
    with pytest.raises(UnknownVariant, match="it has: bf16") as caught:
        choose({"bf16": facts()}, on("L4"), Demand(variant=Variant.INT4))
    assert caught.value.hint == "Set spec.model.variant to bf16 or auto."


@pytest.mark.parametrize("wanted", ["auto", "awq"])
def test_a_published_quantization_is_served_by_auto_and_by_its_name(wanted: str) -> None:
    candidates = {"awq": replace(facts(), quantization="awq")}
    assert choose(candidates, on("L4"), Demand(variant=wanted)).variant == "awq"
    with pytest.raises(UnknownVariant, match="it has: awq") as caught:
        choose(candidates, on("L4"), Demand(variant="bf16"))
    assert caught.value.hint == "Set spec.model.variant to awq or auto."


def test_unknown_sizes_of_a_token_leave_the_context_open() -> None:
    bare = ModelFacts(weight_bytes=GB, gpu_memory_bytes=2 * GB)
    assert choose({"bf16": bare}, on("L4"), Demand()).context is None


models = st.builds(
    facts,
    weight_bytes=st.integers(GB // 10, 800 * GB),
    kv_cache_bytes_per_token=st.integers(0, 1 << 20),
    context_length=st.integers(0, 1 << 20),
)
gpus = st.sampled_from(sorted(GPUS)).map(GPUS.__getitem__)
demands = st.builds(
    Demand,
    context=st.none() | st.integers(16, 1 << 18),
    gpus=st.none() | st.integers(1, 8),
    utilization=st.floats(0.1, 1.0),
)


@given(
    candidates=st.dictionaries(st.sampled_from(list(Variant)), models, min_size=1),
    gpu=gpus, count=st.integers(1, 16), demand=demands,
)  # fmt: skip
def test_choice_fits_and_runs(
    candidates: dict[str, ModelFacts], gpu: Gpu, count: int, demand: Demand
) -> None:
    """What is chosen fits with its context, runs on the GPU, and nothing better on as many GPUs would have."""
    try:
        fit = choose(candidates, Hardware(gpu, count), demand)
    except DoesNotFit:
        return
    budget = gpu.memory_bytes * demand.utilization
    chosen = candidates[fit.variant]
    assert refusal(Hardware(gpu), fit.variant) is None
    held = with_cache(chosen, fit.kv_dtype)
    assert needed_bytes(held, context=fit.context or 0, gpus=fit.gpus) <= budget
    if fit.kv_tokens is not None:
        assert fit.kv_tokens >= (fit.context or 0) // 16 * 16
    assert fit.gpus == demand.gpus or (demand.gpus is None and fit.gpus in (1, 2, 4, 8, 16))
    if demand.context:
        assert fit.context == demand.context
    elif fit.context:
        assert fit.context <= chosen.context_length
    for better in list(Variant)[: list(Variant).index(Variant(fit.variant))]:
        if better in candidates and refusal(Hardware(gpu), better) is None:
            with pytest.raises(DoesNotFit):
                choose(
                    {better: candidates[better]},
                    Hardware(gpu, fit.gpus),
                    replace(demand, gpus=fit.gpus, kv_dtype=fit.kv_dtype),
                )
    if fit.kv_dtype == KV_FP8:
        assert gpu.capability >= 89
        with pytest.raises(DoesNotFit):
            choose(candidates, Hardware(gpu, fit.gpus), replace(demand, kv_dtype=KV_NATIVE))


def with_cache(model: ModelFacts, kv_dtype: str) -> ModelFacts:
    """The model with a token's bytes as a format keeps them."""
    if kv_dtype == KV_NATIVE:
        return model
    tokens, token = min(model.context_length or 8192, 8192), model.kv_cache_bytes_per_token
    saved = tokens * (token // 2)
    return replace(
        model, kv_cache_bytes_per_token=token - token // 2,
        gpu_memory_bytes=max(0, model.gpu_memory_bytes - saved),
    )  # fmt: skip


@given(model=models, context=st.integers(16, 1 << 18), gpu=gpus)
def test_more_memory_never_hurts(model: ModelFacts, context: int, gpu: Gpu) -> None:
    """What fits n GPUs fits 2n."""
    counts = (1, 2, 4, 8)
    fits = [needed_bytes(model, context=context, gpus=n) <= gpu.memory_bytes for n in counts]
    assert all(later or not earlier for earlier, later in pairwise(fits))


@given(models)
def test_overhead_is_what_the_record_adds(model: ModelFacts) -> None:
    """Needing the default context is needing the record's GPU memory, and what grows with the weights on a GPU."""
    tokens = min(model.context_length or 8192, 8192)
    assume(model.gpu_memory_bytes >= model.weight_bytes + tokens * model.kv_cache_bytes_per_token)
    assert needed_bytes(model, context=tokens, gpus=0) == model.gpu_memory_bytes
    on_gpu = needed_bytes(model, context=tokens, gpus=1)
    assert on_gpu == model.gpu_memory_bytes + model.weight_bytes // 20
    assert overhead_bytes(model) >= 0


def test_only_counts_that_vllm_splits_the_model_among() -> None:
    phi = {"bf16": facts(weight_bytes=29 * GB, kv_heads=10, tensor_parallel_sizes=(1, 2))}
    with pytest.raises(DoesNotFit, match="1 or 2 GPUs, not 4"):
        choose(phi, on("T4", 8), Demand())
    with pytest.raises(DoesNotFit, match="can't be split so") as caught:
        choose(phi, on("H100", 8), Demand(gpus=8))
    assert "resources.gpus" in str(caught.value.hint)
    assert choose(phi, on("A100", 8), Demand()).gpus == 1
    assert choose(phi, on("H100", 8), Demand(gpus=8, expert_parallel=True)).tensor_parallel == 8


def test_pipeline_and_data_parallel_groups_multiply_the_gpus() -> None:
    candidates = {"bf16": facts(tensor_parallel_sizes=(1, 2, 4, 8))}
    fit = choose(candidates, on("H100", 8), Demand(pipeline=2, data=2))
    assert (fit.gpus, fit.tensor_parallel) == (4, 1)
    # The weights of a copy are on both GPUs of its pipeline.
    assert choose(candidates, on("T4", 8), Demand(pipeline=2)).gpus == 2
    assert choose(candidates, on("T4", 8), Demand(data=2)).gpus == 4


def test_a_cache_that_isnt_divided_counts_whole_on_each_gpu() -> None:
    divided = facts(kv_heads=8)
    latent = facts(kv_heads=1)
    cache = 8192 * divided.kv_cache_bytes_per_token
    assert (
        needed_bytes(latent, context=8192, gpus=8) - needed_bytes(divided, context=8192, gpus=8)
        == cache - cache // 8
    )


def test_published_quantization_needs_its_own_kernels() -> None:
    with pytest.raises(DoesNotFit, match=r"awq need compute capability 7\.5"):
        choose({"bf16": facts(quantization="awq")}, on("V100"), Demand())
    with pytest.raises(DoesNotFit, match="INT8 kernels"):
        choose({"bf16": facts(quantization="int8")}, on("B200"), Demand())
    with pytest.raises(DoesNotFit, match="CPUs with AVX-512"):
        choose({"bf16": facts(quantization="gptq")}, Hardware(cpus=(AVX2,)), Demand())
    assert choose({"bf16": facts(quantization="fp8")}, on("L4"), Demand()).gpus == 1


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq", "exl2", "mlx", "modelopt-int4_awq"])
def test_a_checkpoint_that_vllm_cant_load_is_refused_on_any_hardware(method: str) -> None:
    only = {method: facts(quantization=method)}
    for hardware in (on("H100"), on("MI300X"), Hardware(cpus=(AVX512,)), Hardware()):
        with pytest.raises(DoesNotFit, match=f"vLLM doesn't load {method} checkpoints$") as caught:
            choose(only, hardware, Demand())
        assert "before it was quantized" in str(caught.value.hint)
    assert choose(only, on("H100"), Demand(engine=Engine.SGLANG)).gpus == 1


@pytest.mark.parametrize(
    ("quantization", "gpu", "served"),
    [
        ("fp8", "T4", True),
        ("fp8-modelopt", "T4", False),
        ("fp8-fbgemm", "T4", False),
        ("fp8-modelopt", "A10G", True),
        ("fp8-fbgemm", "MI300X", True),
        ("w4a8-fp8", "L40S", False),
        ("w4a8-fp8", "H200", True),
        ("w4a8-fp8", "B200", False),
        ("w4a8-int8", "L4", True),
    ],
)
def test_formats_of_the_same_width_have_kernels_of_their_own(
    quantization: str, gpu: str, served: bool
) -> None:
    assert (refusal(on(gpu), quantization) is None) == served


def test_models_that_arent_stable_in_float16_take_twice_the_memory_before_ampere() -> None:
    gemma = {"bf16": facts(weight_bytes=5 * GB, model_type="gemma3")}
    assert compute_dtype(GPUS["T4"], "gemma3") == "float32"
    assert choose(gemma, on("T4", 4), Demand()).gpus == 2
    with pytest.raises(DoesNotFit, match="in float32"):
        choose({"int4": gemma["bf16"]}, on("T4"), Demand())


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"model_type": "jamba"}, r"serves Mamba 1 \(jamba\) on GPUs only"),
        ({"model_type": "deepseek_v32"}, "sparse attention"),
        ({"quantization": "gptq", "dtype": "int8"}, "on GPUs only"),
        ({"quantization": "mxfp4"}, "only on CPUs with AMX"),
        ({"quantization": "fp8-block"}, "fp8-block only on CPUs with AMX"),
        ({"quantization": "fp8", "quantized_experts": True}, "fp8 experts only on CPUs with AMX"),
        ({"quantization": "awq", "quantized_experts": True}, "int4 experts only on CPUs with AMX"),
    ],
)
def test_what_vllm_has_no_kernels_for_on_this_cpu_is_refused(
    known: dict[str, Any], words: str
) -> None:
    model = {"bf16": replace(facts(), **known)}
    with pytest.raises(DoesNotFit, match=words) as caught:
        choose(model, Hardware(cpus=(AVX512,)), Demand())
    # Another precision of the same mixture or type of layers has no kernels here either.
    lasting = {"model_type", "quantized_experts"} & set(known)
    assert ("one that runs here" in (caught.value.hint or "")) == (not lasting)
    assert choose(model, Hardware(find_gpu("H100"), 1), Demand()).gpus == 1
    assert choose(model, Hardware(cpus=(AVX512,)), Demand(engine=Engine.LLAMA_CPP)).gpus == 0


def test_quantized_experts_are_served_where_they_have_kernels() -> None:
    only = {"int8": replace(facts(), quantized_experts=True)}
    with pytest.raises(DoesNotFit, match="int8 experts only on CPUs with AMX"):
        choose(only, Hardware(cpus=(AVX512,)), Demand())
    for flags in (AVX512 | {"amx_tile"}, frozenset({"asimd"})):
        assert choose(only, Hardware(cpus=(flags,)), Demand()).variant == "int8"
    dense = {"bf16": facts(quantization="fp8")}
    assert choose(dense, Hardware(cpus=(AVX2,)), Demand()).gpus == 0

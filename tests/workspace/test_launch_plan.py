"""The launch plan: what is derived, what the user overrides, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.record import RecordFile, Role
from tests.workspace.samples import GB, record, workspace
from workspace.arguments import given as flags_given
from workspace.arguments import value_of
from workspace.fit import DoesNotFit
from workspace.hardware import GPUS, Hardware
from workspace.launch_plan import LaunchPlan, Site, choose_variant, plan_launch, startup_seconds
from workspace.runtime_spec import Engine
from workspace.served_file import of_file

GIB = 1 << 30
SITE = Site(PurePosixPath("/models/m"), "127.0.0.1", 8123)
CPU = Hardware(memory_bytes=64 << 30)
SMALL: dict[str, Any] = {
    "weight_bytes": GB, "gpu_memory_bytes": 3 * GB, "context_length": 8192, "kv_cache_bytes_per_token": 20_000,
}  # fmt: skip


def plan(
    hardware: Hardware, *, site: Site = SITE, facts: dict[str, Any] | None = None, **spec: Any
) -> LaunchPlan:
    each, model = workspace(**spec), record(**(facts or SMALL))
    fit = choose_variant(each, {"bf16": model}, hardware)
    return plan_launch(each, record=model, fit=fit, hardware=hardware, site=site)


def test_cpu_command_line() -> None:
    found = plan(CPU)
    assert found.args == (
        "--model", "/models/m", "--served-model-name", "chat", "--host", "127.0.0.1", "--port", "8123",
        "--dtype", "bfloat16", "--max-model-len", "8192", "--max-num-seqs", "104", "--enable-prefix-caching",
        "--enforce-eager",
    )  # fmt: skip
    assert {each.name: each.value for each in found.env} == {
        "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip


def test_gpu_command_line() -> None:
    found = plan(Hardware(GPUS["T4"], 1))
    assert value_of(found.args, "--dtype") == "float16"
    assert value_of(found.args, "--gpu-memory-utilization") == "0.90"
    assert "--enforce-eager" not in found.args
    assert "--tensor-parallel-size" not in found.args


def test_tensor_parallel() -> None:
    found = plan(Hardware(GPUS["L4"], 8), facts={"weight_bytes": 60 * GB})
    assert value_of(found.args, "--tensor-parallel-size") == "4"
    assert found.gpus == 4


def test_shared_gpu_takes_its_share() -> None:
    found = plan(Hardware(GPUS["L4"], 1), resources={"gpu": "L4", "fraction": 0.5})
    assert value_of(found.args, "--gpu-memory-utilization") == "0.45"


def test_as_many_requests_run_at_once_as_the_cache_holds() -> None:
    roomy = plan(Hardware(GPUS["H100"], 1))
    assert (
        value_of(roomy.args, "--max-num-seqs") == "256"
    )  # what the record's memory was counted for
    tight = plan(Hardware(GPUS["L4"], 1), facts={"weight_bytes": 16 * GB})
    tokens = int(value_of(tight.args, "--max-num-seqs") or 0) * 512
    assert 0 < tokens * 131_072 < 22.5 * GIB * 0.9 - 16 * GB
    asked = plan(Hardware(GPUS["L4"], 1), runtime={"args": ["--max-num-seqs=7"]})
    assert asked.args.count("--max-num-seqs") == 0
    assert value_of(asked.args, "--max-num-seqs") == "7"
    given_by_user = plan(CPU, runtime={"env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "9"}]})
    assert value_of(given_by_user.args, "--max-num-seqs") is None


LONG: dict[str, Any] = {
    "weight_bytes": 9 * GB
}  # and 131,072 tokens of 131,072 bytes: 17 GB in 16 bits


def test_an_8_bit_cache_comes_before_a_second_gpu_and_only_where_gpus_compute_in_it() -> None:
    spec = {"runtime": {"contextLength": 131_072}}
    ada = plan(Hardware(GPUS["L4"], 2), facts=LONG, **spec)
    assert (ada.gpus, value_of(ada.args, "--kv-cache-dtype")) == (1, "fp8")
    assert any("bf16 needs" in reason for reason in ada.reasons)
    ampere = plan(Hardware(GPUS["A10"], 2), facts=LONG, **spec)
    assert (ampere.gpus, value_of(ampere.args, "--kv-cache-dtype")) == (2, None)
    short = plan(Hardware(GPUS["L4"], 2), facts=LONG)
    assert value_of(short.args, "--kv-cache-dtype") is None


def test_a_cache_format_that_the_user_gives_enters_the_arithmetic() -> None:
    context = {"contextLength": 131_072}
    with pytest.raises(DoesNotFit):
        plan(
            Hardware(GPUS["L4"], 1), facts=LONG,
            runtime={**context, "args": ["--kv-cache-dtype", "auto"]},
        )  # fmt: skip
    found = plan(
        Hardware(GPUS["A10"], 1), facts=LONG,
        runtime={**context, "args": ["--kv_cache_dtype=fp8_e5m2"]},
    )  # fmt: skip
    assert found.gpus == 1
    assert value_of(found.args, "--kv-cache-dtype") == "fp8_e5m2"


def test_beginnings_are_shared_but_for_models_that_keep_a_state() -> None:
    assert "--enable-prefix-caching" in plan(CPU).args
    state = plan(CPU, facts=SMALL | {"architecture": "JambaForCausalLM"})
    assert "--enable-prefix-caching" not in state.args
    off = plan(CPU, runtime={"args": ["--no-enable-prefix-caching"]})
    assert "--enable-prefix-caching" not in off.args


def test_sglang_is_told_as_much() -> None:
    found = plan(Hardware(GPUS["H100"], 1), runtime={"engine": "sglang"})
    assert value_of(found.args, "--max-running-requests") == "256"


def test_user_args_enter_the_arithmetic() -> None:
    found = plan(CPU, runtime={"args": ["--max_model_len=4k", "--served-model-name", "mine"]})
    assert "--max-model-len" not in found.args
    assert found.context == 4000
    assert found.served_name == "mine"
    with pytest.raises(DoesNotFit):
        plan(Hardware(GPUS["T4"], 1), runtime={"args": ["--gpu-memory-utilization", "0.05"]})


def test_user_env_wins() -> None:
    found = plan(CPU, runtime={"env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "7"}]})
    assert [each.value for each in found.env if each.name == "VLLM_CPU_KVCACHE_SPACE"] == ["7"]


@pytest.mark.parametrize("argument", ["--port=1", "--model", "--host", "-m"])
def test_what_the_workspace_decides_is_refused_as_argument(argument: str) -> None:
    with pytest.raises(InvalidInput, match="Weightyard sets it"):
        plan(CPU, runtime={"args": [argument]})


DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ({"image": "registry.example/team/m:v1"}, False),
        ({"image": f"registry.example/team/m:v1@{DIGEST}"}, True),
        ({"image": f"oci:out@{DIGEST}"}, True),
        ({"hub": "org/name@main"}, False),
        ({"hub": f"org/name@{'0' * 40}"}, True),
        ({"s3": "bucket/prefix"}, False),
    ],
)
@pytest.mark.parametrize("flag", ["--trust-remote-code", "--trust_remote_code=true"])
def test_a_models_code_runs_only_where_it_cannot_change(
    model: dict[str, str], allowed: bool, flag: str
) -> None:
    if allowed:
        assert flag in plan(CPU, model=model, runtime={"args": [flag]}).args
    else:
        with pytest.raises(InvalidInput, match="contents can change"):
            plan(CPU, model=model, runtime={"args": [flag]})
    assert plan(CPU, model=model, runtime={"args": ["--no-trust-remote-code"]})


def test_engines_take_their_format() -> None:
    gguf = SMALL | {"format": "gguf"}
    assert plan(CPU, facts=gguf, runtime={"engine": "llama.cpp"}).engine is Engine.LLAMA_CPP
    with pytest.raises(InvalidInput, match=r"llama.cpp serves gguf, the model is safetensors"):
        plan(CPU, runtime={"engine": "llama.cpp"})
    with pytest.raises(InvalidInput, match="vllm serves safetensors, the model is gguf"):
        plan(CPU, facts=gguf)


@pytest.mark.parametrize(
    "draft", ["LlamaForCausalLMEagle3", "Eagle3Speculator", "MedusaModel", "DeepSeekMTPModel"]
)
def test_a_draft_is_not_served_alone(draft: str) -> None:
    with pytest.raises(InvalidInput, match=f"{draft} is a draft"):
        plan(CPU, facts=SMALL | {"architecture": draft})
    assert plan(CPU, facts=SMALL | {"architecture": "Eagle2_5_VLForConditionalGeneration"})


def test_llama_cpp_gets_one_quantization_and_its_projector() -> None:
    paths = (
        "m-Q8_0.gguf",
        "m-Q4_K_M-00001-of-00002.gguf",
        "m-Q4_K_M-00002-of-00002.gguf",
        "mmproj-m.gguf",
    )
    digest = Digest.of(b"x")
    files = tuple(RecordFile(path, 1, digest, Role.WEIGHT, digest, ()) for path in paths)
    model = replace(record(**(SMALL | {"format": "gguf"})), files=files)
    each = workspace(runtime={"engine": "llama.cpp"})
    fit = choose_variant(each, {"bf16": model}, CPU)
    found = plan_launch(each, record=model, fit=fit, hardware=CPU, site=SITE)
    assert value_of(found.args, "--model") == "/models/m/m-Q4_K_M-00001-of-00002.gguf"
    assert value_of(found.args, "--mmproj") == "/models/m/mmproj-m.gguf"


def test_the_gguf_file_that_the_workspace_names_is_served_and_counted() -> None:
    sizes = {"m-Q4_K_M.gguf": 4 << 20, "big/m-Q8_0-00001-of-00002.gguf": 5 << 20,
             "big/m-Q8_0-00002-of-00002.gguf": 3 << 20, "mmproj-m.gguf": 1 << 20}  # fmt: skip
    digest = Digest.of(b"x")
    files = tuple(RecordFile(p, size, digest, Role.WEIGHT, digest, ()) for p, size in sizes.items())
    facts = SMALL | {"format": "gguf", "weight_bytes": 5 << 20}
    model = replace(record(**facts), files=files)

    def served(file: str) -> LaunchPlan:
        each = workspace(runtime={"engine": "llama.cpp"}, model={"image": "r/m:v1", "file": file})
        fit = choose_variant(each, {"bf16": model}, CPU)
        return plan_launch(each, record=model, fit=fit, hardware=CPU, site=SITE)

    for part in (1, 2):
        found = served(f"big/m-Q8_0-0000{part}-of-00002.gguf")
        assert value_of(found.args, "--model") == "/models/m/big/m-Q8_0-00001-of-00002.gguf"
        assert value_of(found.args, "--mmproj") == "/models/m/mmproj-m.gguf"
        assert found.key == model.key
    big = of_file(model, "big/m-Q8_0-00001-of-00002.gguf")
    assert big.facts.weight_bytes == 9 << 20
    assert big.facts.gpu_memory_bytes - model.facts.gpu_memory_bytes == 4 << 20
    assert of_file(model, "m-Q4_K_M.gguf").facts == model.facts

    for wrong in ("mmproj-m.gguf", "m-Q5_K.gguf"):
        with pytest.raises(InvalidInput, match="no GGUF file") as caught:
            served(wrong)
        assert "It has m-Q4_K_M.gguf, big/m-Q8_0-00001-of-00002.gguf." in str(caught.value.hint)
    plain = workspace(model={"image": "r/m:v1", "file": "model.gguf"})
    with pytest.raises(InvalidInput, match="no GGUF file"):
        choose_variant(plain, {"bf16": record(**SMALL)}, CPU)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
def test_every_engine_gets_model_and_port(engine: str) -> None:
    found = plan(CPU, runtime={"engine": engine})
    assert "/models/m" in found.args
    assert value_of(found.args, "--port") == "8123"


def test_adapters() -> None:
    site = Site(
        SITE.model_dir, SITE.host, SITE.port, adapter_dirs={"law": PurePosixPath("/models/law")}
    )
    found = plan(CPU, site=site, runtime={"adapters": [{"name": "law", "image": "x"}]})
    assert "--enable-lora" in found.args
    assert "law=/models/law" in found.args


def test_adapters_that_a_model_brings_are_served_with_it() -> None:
    digest = Digest.of(b"")
    paths = [f"{name}-lora/{file}" for name in ("speech", "vision")
             for file in ("adapter_config.json", "adapter_model.safetensors")]  # fmt: skip
    files = tuple(RecordFile(path, 1, digest, Role.WEIGHT, digest, ()) for path in paths)
    model = replace(record(**SMALL, architecture="Phi4MMForCausalLM", lora_rank=320), files=files)

    def served(engine: str, *names: str) -> LaunchPlan:
        adapters = [{"name": name, "image": "x"} for name in names]
        each = workspace(runtime={"engine": engine, "adapters": adapters})
        fit = choose_variant(each, {"bf16": model}, CPU)
        site = replace(SITE, adapter_dirs={name: PurePosixPath("/models/own") for name in names})
        return plan_launch(each, record=model, fit=fit, hardware=CPU, site=site)

    args = served("vllm").args
    assert value_of(args, "--max-lora-rank") == "320"
    start = args.index("--lora-modules")
    assert args[start + 1 : start + 3] == (
        "speech-lora=/models/m/speech-lora", "vision-lora=/models/m/vision-lora",
    )  # fmt: skip
    assert "vision-lora=/models/own" in served("vllm", "vision-lora").args
    assert "vision-lora=/models/m/vision-lora" not in served("vllm", "vision-lora").args
    assert "--lora-paths" not in served("sglang").args


@given(
    rate=st.none() | st.floats(1, 1e11),
    size=st.integers(0, 10**13),
    gpus=st.integers(0, 8),
)
def test_startup_outlasts_reading(rate: float | None, size: int, gpus: int) -> None:
    """A probe never gives up before the weights could be read, and waits longer for more."""
    site = Site(SITE.model_dir, SITE.host, SITE.port, read_rate=rate)
    seconds = startup_seconds(record(weight_bytes=size), site, gpus=gpus)
    assert seconds >= size / (rate or 1e9)
    assert seconds <= startup_seconds(record(weight_bytes=size + GB), site, gpus=gpus)
    assert seconds >= 120


words = st.sampled_from(["--seed", "--max-num-seqs", "--dtype", "--max-model-len"])


@given(
    st.lists(st.tuples(words, st.integers(16, 4096).map(str)), max_size=4, unique_by=lambda p: p[0])
)
def test_no_flag_stands_twice(pairs: list[tuple[str, str]]) -> None:
    """Derived and given arguments together name each flag once, and the user's value is the one there."""
    user = [word for pair in pairs for word in pair]
    found = plan(CPU, runtime={"args": user})
    flags = [word for word in found.args if word.startswith("--")]
    assert len(flags) == len(flags_given(found.args))
    for flag, value in pairs:
        assert value_of(found.args, flag) == value


def test_probe_arithmetic() -> None:
    found = plan(CPU)
    assert (
        found.probes.startup_failures * found.probes.period_seconds >= found.probes.startup_seconds
    )

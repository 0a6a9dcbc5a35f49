"""Inference servers as templates: command line, supported formats, health endpoint.

One table; a new server is a new row. Pure: a template returns arguments as tuples and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from workspace.arguments import Argument
from workspace.node_groups import TRACED, GroupAddress, group_arguments
from workspace.runtime_spec import Engine
from workspace.schema import Vendor

# vLLM's `--max-lora-rank` where nothing is given.
DEFAULT_LORA_RANK: Final = 16


@dataclass(frozen=True, slots=True)
class Launch:
    """Input of a template. `gpus` 0 means a CPU server; None leaves a setting to the engine's default.

    `tensor_parallel` is the part of the GPUs that share each layer; `pooling`: the model embeds or ranks; `lora_rank`
    is the greatest rank of the adapters that the engine must accept. `gguf_file` is the first part of a GGUF model;
    `projector` is its file for pictures, `lora_files` are the adapters in its image; `sampling` are the image's default
    parameters, by Ollama's names.
    `traces` is where spans are sent.
    `group`: one process of several on `nodes` nodes, with `pipeline` stages in all; it `leads`, or is a worker.
    `sequences` is the number of concurrent requests; `kv_dtype` is the KV cache's format in vLLM's spelling.
    """

    model_dir: PurePosixPath
    gguf_file: str | None
    served_name: str
    host: str
    port: int
    gpus: int
    context: int | None
    dtype: str | None
    utilization: float
    sequences: int | None = None
    kv_dtype: str | None = None
    prefix_caching: bool = False
    adapters: tuple[tuple[str, PurePosixPath], ...] = ()
    tensor_parallel: int = 1
    pooling: bool = False
    lora_rank: int = 0
    projector: str | None = None
    lora_files: tuple[str, ...] = ()
    sampling: tuple[tuple[str, float], ...] = ()
    traces: str | None = None
    group: GroupAddress | None = None
    nodes: int = 1
    pipeline: int = 1
    leads: bool = True


@dataclass(frozen=True, slots=True)
class Template:
    """One engine. `command` starts it in a container; `module` is run with `python -m` on this machine, if any.

    `worker_command` starts a process that only computes for another one; empty for engines that run on one machine.
    """

    command: tuple[str, ...]
    module: str | None
    images: Mapping[Vendor, str]  # for GPUs
    cpu_image: str | None
    formats: frozenset[str]
    health_path: str
    arguments: Callable[[Launch], list[Argument]]
    fixed_flags: frozenset[str]
    worker_command: tuple[str, ...] = ()


def _vllm(launch: Launch) -> list[Argument]:
    arguments: list[Argument] = [
        ("--model", str(launch.model_dir)),
        ("--served-model-name", launch.served_name),
        ("--host", launch.host),
        ("--port", str(launch.port)),
    ]
    if launch.dtype:
        arguments.append(("--dtype", launch.dtype))
    if launch.context:
        arguments.append(("--max-model-len", str(launch.context)))
    if launch.sequences:
        arguments.append(("--max-num-seqs", str(launch.sequences)))
    if launch.kv_dtype:
        arguments.append(("--kv-cache-dtype", launch.kv_dtype))
    if launch.prefix_caching:
        arguments.append(("--enable-prefix-caching",))
    arguments += _vllm_devices(launch)
    if launch.group is not None:
        arguments += group_arguments(
            launch.nodes, launch.pipeline, launch.group, leads=launch.leads
        )
    if launch.pooling:
        arguments.append(("--runner", "pooling"))
    if launch.traces:
        arguments.append(("--otlp-traces-endpoint", launch.traces))
    if launch.adapters:
        arguments.append(("--enable-lora",))
        # vLLM reserves memory on the GPU for this rank, for each adapter that it holds.
        if launch.lora_rank > DEFAULT_LORA_RANK:
            arguments.append(("--max-lora-rank", str(launch.lora_rank)))
        arguments.append(("--lora-modules", *(f"{name}={path}" for name, path in launch.adapters)))
    return arguments


def _vllm_devices(launch: Launch) -> list[Argument]:
    if not launch.gpus:
        # On a CPU, compilation takes longer than it saves for models small enough to run there.
        stages = launch.pipeline > 1
        return [("--compilation-config", TRACED) if stages else ("--enforce-eager",)]
    arguments: list[Argument] = [("--gpu-memory-utilization", f"{launch.utilization:.2f}")]
    if launch.tensor_parallel > 1:
        arguments.append(("--tensor-parallel-size", str(launch.tensor_parallel)))
    return arguments


def _sglang(launch: Launch) -> list[Argument]:
    arguments: list[Argument] = [
        ("--model-path", str(launch.model_dir)),
        ("--served-model-name", launch.served_name),
        ("--host", launch.host),
        ("--port", str(launch.port)),
    ]
    if launch.dtype:
        arguments.append(("--dtype", launch.dtype))
    if launch.context:
        arguments.append(("--context-length", str(launch.context)))
    if launch.sequences:
        arguments.append(("--max-running-requests", str(launch.sequences)))
    if launch.tensor_parallel > 1:
        arguments.append(("--tensor-parallel-size", str(launch.tensor_parallel)))
    if not launch.gpus:
        arguments.append(("--device", "cpu"))
    if launch.adapters:
        arguments.append(("--lora-paths", *(f"{name}={path}" for name, path in launch.adapters)))
    return arguments


def _tgi(launch: Launch) -> list[Argument]:
    arguments: list[Argument] = [
        ("--model-id", str(launch.model_dir)),
        ("--hostname", launch.host),
        ("--port", str(launch.port)),
    ]
    if launch.dtype:
        arguments.append(("--dtype", launch.dtype))
    if launch.context:
        arguments.append(("--max-total-tokens", str(launch.context)))
    if launch.tensor_parallel > 1:
        arguments.append(("--num-shard", str(launch.tensor_parallel)))
    if launch.gpus:
        arguments.append(("--cuda-memory-fraction", f"{launch.utilization:.2f}"))
    if launch.adapters:
        adapters = ",".join(f"{name}={path}" for name, path in launch.adapters)
        arguments.append(("--lora-adapters", adapters))
    return arguments


# llama-server's flags of the parameters that Ollama's images state. Clients may set others in each request.
_LLAMA_SAMPLING: Final[Mapping[str, str]] = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
}


def _llama_cpp(launch: Launch) -> list[Argument]:
    arguments: list[Argument] = [
        ("--model", str(launch.model_dir / (launch.gguf_file or ""))),
        ("--alias", launch.served_name),
        ("--host", launch.host),
        ("--port", str(launch.port)),
    ]
    if launch.projector:
        arguments.append(("--mmproj", str(launch.model_dir / launch.projector)))
    if launch.context:
        arguments.append(("--ctx-size", str(launch.context)))
    if launch.gpus:
        # llama-server caps this at the model's layer count: all layers go to the GPU.
        arguments.append(("--n-gpu-layers", "999"))
    arguments += [("--lora", str(launch.model_dir / path)) for path in launch.lora_files]
    arguments += [("--lora", str(path)) for _, path in launch.adapters]
    arguments += [
        (_LLAMA_SAMPLING[name], str(value))
        for name, value in launch.sampling
        if name in _LLAMA_SAMPLING
    ]
    return arguments


# Gauges of requests that run and that wait, by engine. Others publish none, or not by default.
QUEUE_METRICS: Final[Mapping[Engine, tuple[str, str]]] = {
    Engine.VLLM: ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    Engine.SGLANG: ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
}
# Counters of generated tokens, by engine; llama.cpp has one with --metrics.
TOKEN_METRICS: Final[Mapping[Engine, str]] = {
    Engine.VLLM: "vllm:generation_tokens_total",
    Engine.SGLANG: "sglang:generation_tokens_total",
    Engine.LLAMA_CPP: "llamacpp:tokens_predicted_total",
}
_SAFETENSORS: Final = frozenset({"safetensors"})
# Set by the plan: probes and Services depend on host and port.
_WHERE: Final = frozenset({"--host", "--port"})

TEMPLATES: Final[Mapping[Engine, Template]] = {
    Engine.VLLM: Template(
        command=("python3", "-m", "vllm.entrypoints.openai.api_server"),
        module="vllm.entrypoints.openai.api_server",
        images={
            Vendor.NVIDIA: "docker.io/vllm/vllm-openai:v0.32.0",
            Vendor.AMD: "docker.io/vllm/vllm-openai-rocm:v0.32.0",
            Vendor.INTEL: "docker.io/vllm/vllm-openai-xpu:v0.32.0",
        },
        cpu_image="public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0",
        formats=_SAFETENSORS,
        health_path="/health",
        arguments=_vllm,
        fixed_flags=_WHERE | {"--model"},
        # The module above starts a server, whatever its arguments say.
        worker_command=("python3", "-m", "vllm.entrypoints.cli.main", "serve"),
    ),
    Engine.SGLANG: Template(
        command=("python3", "-m", "sglang.launch_server"),
        module="sglang.launch_server",
        images={Vendor.NVIDIA: "docker.io/lmsysorg/sglang:v0.5.5"},
        cpu_image=None,
        formats=_SAFETENSORS,
        health_path="/health",
        arguments=_sglang,
        fixed_flags=_WHERE | {"--model-path", "--model"},
    ),
    Engine.TGI: Template(
        command=("text-generation-launcher",),
        module=None,
        images={Vendor.NVIDIA: "ghcr.io/huggingface/text-generation-inference:3.3.6"},
        cpu_image=None,
        formats=_SAFETENSORS,
        health_path="/health",
        arguments=_tgi,
        fixed_flags=frozenset({"--hostname", "--port", "--model-id"}),
    ),
    Engine.LLAMA_CPP: Template(
        command=("/app/llama-server",),
        module=None,
        images={
            Vendor.NVIDIA: "ghcr.io/ggml-org/llama.cpp:server-cuda",
            Vendor.AMD: "ghcr.io/ggml-org/llama.cpp:server-rocm",
            Vendor.INTEL: "ghcr.io/ggml-org/llama.cpp:server-intel",
        },
        cpu_image="ghcr.io/ggml-org/llama.cpp:server",
        formats=frozenset({"gguf"}),
        health_path="/health",
        arguments=_llama_cpp,
        fixed_flags=_WHERE | {"--model"},
    ),
}

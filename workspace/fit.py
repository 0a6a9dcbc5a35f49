"""Chooses variant, GPU count and context length for a machine. Pure arithmetic on the records' facts.

    per GPU   1.05 x weights / GPUs + context x KV cache per token / shares + overhead  <=  GPU memory x utilization
    on a CPU   weights + context x KV cache per token  + overhead         <=  memory

`GPUs` are those of one copy of the model: tensor x pipeline parallel size; data parallel sizes multiply them. Several
nodes share a copy evenly, by pipeline stages; without GPUs each node's memory counts as one GPU's does. `shares`
is less where the cache isn't divided: a GPU holds at least one KV head, and latent attention's whole cache. Only tensor
parallel sizes of the record, with which vLLM starts, are chosen. `overhead` (activations, runtime, and a reserve where
the KV cache's size is unknown) is the record's GPU memory minus weights and KV cache. The 5% are captured graphs and
workspaces, which grow with the model (up to 5.5 GiB a GPU were measured: kaito-project/kaito, pull 2139). Fewest GPUs
come first, then accuracy: with `auto` a second GPU is used only when no variant fits one. A requested context must fit.
Without one, 8,192 tokens or the model's own length must fit, and the longest that fits is used. The KV cache has 16
bits. If nothing fits, 8 bits (FP8) are tried before another GPU, on GPUs that compute in FP8. The number of tokens that
the cache then holds limits the concurrent requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from modelimage.cpus import cpu_model_refusal
from modelimage.errors import NoSpace, UnknownVariant
from modelimage.gpu_memory import DEFAULT_CONTEXT
from modelimage.quantization import DEFAULT_VARIANT, LOADED_BY_VLLM, Variant
from modelimage.record import ModelFacts
from workspace.hardware import (
    DEFAULT_UTILIZATION,
    FLOAT32,
    Hardware,
    compute_dtype,
    kernels_of,
    refusal,
)
from workspace.runtime_spec import Engine
from workspace.schema import AUTO_VARIANT

KV_NATIVE: Final = "auto"  # 16 bits; the record's bytes per token assume these
KV_FP8: Final = "fp8"
_FP8_CAPABILITY: Final = 89  # from Ada and Hopper: FP8 attention without conversions
_BLOCK: Final = 16  # tokens; vLLM's KV cache block
_GRAPHS_DIVISOR: Final = 20  # of the weights: GPU graphs and workspaces


class DoesNotFit(NoSpace):
    """No variant fits the memory, or those that fit can't run on this GPU."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The requested limits of a fit; None where the planner may choose. `kv_dtype` is in vLLM's spelling.

    `pipeline` and `data` are the parallel sizes; `gpus` counts the GPUs of all groups, on all `nodes`. The error for a
    model that doesn't fit names how many of `most_nodes` it fits.
    """

    variant: str = AUTO_VARIANT
    context: int | None = None
    gpus: int | None = None
    utilization: float = DEFAULT_UTILIZATION
    kv_dtype: str | None = None
    engine: Engine = Engine.VLLM
    pipeline: int = 1
    data: int = 1
    expert_parallel: bool = False
    nodes: int = 1
    most_nodes: int = 1

    @property
    def groups(self) -> int:
        """Tensor parallel groups: GPUs are a multiple of this number."""
        return self.pipeline * self.data


@dataclass(frozen=True, slots=True)
class Fit:
    """The chosen variant. `gpus` 0 means a CPU; `context` is None when the model's bytes per token are unknown.

    `kv_tokens` is the KV cache's capacity in tokens of all requests together, in one copy of the model; None when
    unknown. `groups` is the number of tensor parallel groups, `nodes` that of the nodes which share the GPUs.
    """

    variant: str
    gpus: int
    context: int | None
    reasons: tuple[str, ...] = ()
    kv_dtype: str = KV_NATIVE
    kv_tokens: int | None = None
    groups: int = 1
    nodes: int = 1

    @property
    def node_gpus(self) -> int:
        """GPUs of each node; 0 on CPUs."""
        return self.gpus // self.nodes

    @property
    def tensor_parallel(self) -> int:
        """GPUs of one tensor parallel group; 0 on a CPU."""
        return self.gpus // self.groups


def choose(candidates: Mapping[str, ModelFacts], hardware: Hardware, demand: Demand) -> Fit:
    """The best fit. Raises UnknownVariant, or DoesNotFit with the obstacle of each variant."""
    variants = _wanted(candidates, demand.variant)
    reasons: list[str] = []
    # The order is the policy: fewest GPUs, then the most accurate cache, then the most accurate
    # variant.
    tries = product(_gpu_counts(hardware, demand), _kv_dtypes(hardware, demand), variants)
    for gpus, kv_dtype, variant in tries:
        facts = _with_cache(_computed(candidates[variant], hardware), kv_dtype)
        why_not = _obstacle(variant, facts, hardware, demand, gpus)
        if why_not is None:
            tokens = _tokens_that_fit(facts, hardware, demand, gpus)
            context = _context(facts, hardware, demand, tokens)
            passed = tuple(dict.fromkeys(reasons))
            return Fit(
                variant, gpus, context, passed, kv_dtype, tokens, demand.groups, demand.nodes
            )
        # What holds for any cache is said once.
        if why_not not in reasons:
            reasons.append(f"{why_not} with an {kv_dtype} cache" if kv_dtype == KV_FP8 else why_not)
    chosen = {variant: candidates[variant] for variant in variants}
    error = _nothing_fits(chosen, hardware, demand, "; ".join(dict.fromkeys(reasons)))
    nodes = _enough_nodes(chosen, hardware, demand)
    if nodes is not None:
        error.hint = f"{error.hint} In a cluster {nodes} such nodes can share it: spec.resources.nodes: {nodes}."
    raise error


def overhead_bytes(facts: ModelFacts) -> int:
    """Activations and runtime: the record's GPU memory minus weights and KV cache of the default context."""
    tokens = min(facts.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    held = facts.weight_bytes + tokens * facts.kv_cache_bytes_per_token
    return max(0, facts.gpu_memory_bytes - held)


def needed_bytes(
    facts: ModelFacts, *, context: int, gpus: int, pipeline: int = 1, nodes: int = 1
) -> int:
    """Memory needed on each of the `gpus` GPUs of one copy, or on each of its `nodes` when `gpus` is 0."""
    ways = max(gpus, nodes)
    shares = _cache_shares(facts, ways, pipeline)
    cache = context * facts.kv_cache_bytes_per_token
    # Weights and cache are divided among the GPUs (rounded up together); activations and runtime
    # exist on each.
    divided = _held_bytes(facts, gpus) * shares + cache * ways
    return -(-divided // (ways * shares)) + overhead_bytes(facts)


def _cache_shares(facts: ModelFacts, gpus: int, pipeline: int) -> int:
    """Parts of the KV cache of which each GPU holds one."""
    tensor = max(gpus // pipeline, 1)
    return min(tensor, facts.kv_heads or tensor) * pipeline


def _held_bytes(facts: ModelFacts, gpus: int) -> int:
    """The weights, and on GPUs the graphs and workspaces that grow with them."""
    return facts.weight_bytes + (facts.weight_bytes // _GRAPHS_DIVISOR if gpus else 0)


def _wanted(candidates: Mapping[str, ModelFacts], variant: str) -> list[str]:
    if variant != AUTO_VARIANT:
        if variant not in candidates:
            raise UnknownVariant(
                f"the image has no variant {variant!r}; it has: {', '.join(candidates)}",
                hint=f"Set spec.model.variant to {' or '.join((*candidates, AUTO_VARIANT))}.",
            )
        return [variant]
    # Names that others gave come last: their accuracy is unknown.
    ours = [each.value for each in Variant if each in candidates]
    return ours + [each for each in candidates if each not in ours]


def _nothing_fits(
    tried: Mapping[str, ModelFacts], hardware: Hardware, demand: Demand, reasons: str
) -> DoesNotFit:
    """The error with a hint: another variant or machine when kernels are missing, else less context or more memory."""
    engine = demand.engine
    if demand.gpus and all(_unsplittable(facts, demand, demand.gpus) for facts in tried.values()):
        return DoesNotFit(
            f"the model can't be split so: {reasons}",
            hint="Choose one of these counts in spec.resources.gpus, or add --pipeline-parallel-size to "
            "spec.runtime.args.",
        )
    if any(_refused(variant, facts, hardware, engine) is None for variant, facts in tried.items()):
        return DoesNotFit(
            f"the model doesn't fit: {reasons}",
            hint="Ask for a shorter spec.runtime.contextLength, a smaller variant, or more or larger GPUs.",
        )
    if engine is Engine.VLLM and not any(_is_loaded(facts) for facts in tried.values()):
        return DoesNotFit(
            f"the model doesn't run here: {reasons}",
            hint="Build the image from the model before it was quantized, or choose another spec.runtime.engine.",
        )
    # Those that were tried don't run here, whatever their names: a published one may be packed.
    other = replace(next(iter(tried.values())), quantization="")
    runs = [
        variant
        for variant in Variant
        if variant not in tried and _refused(variant, other, hardware, engine) is None
    ]
    choice = f"Set spec.model.variant to one that runs here ({', '.join(runs)}) and that the image has, or serve"
    where = (
        "nodes that run it (spec.resources.nodeSelector)"
        if len(hardware.cpus) > 1
        else "other hardware"
    )
    return DoesNotFit(
        f"the model doesn't run here: {reasons}", hint=f"{choice if runs else 'Serve'} on {where}."
    )


def _enough_nodes(
    tried: Mapping[str, ModelFacts], hardware: Hardware, demand: Demand
) -> int | None:
    """The fewest nodes that a variant fits, with as many GPUs on each; None if it fits none that may be had."""
    for nodes in range(demand.nodes + 1, demand.most_nodes + 1):
        gpus = None if demand.gpus is None else demand.gpus // demand.nodes * nodes
        wider = replace(demand, nodes=nodes, pipeline=nodes, gpus=gpus)
        machines = replace(hardware, count=hardware.count // demand.nodes * nodes)
        tries = product(_gpu_counts(machines, wider), _kv_dtypes(machines, wider), tried)
        if any(
            _obstacle(
                variant,
                _with_cache(_computed(tried[variant], machines), kv_dtype),
                machines,
                wider,
                gpus,
            )
            is None
            for gpus, kv_dtype, variant in tries
        ):
            return nodes
    return None


def _gpu_counts(hardware: Hardware, demand: Demand) -> Iterator[int]:
    """GPU counts to try. Tensor parallel sizes that aren't requested are powers of two, the fastest ones."""
    if hardware.gpu is None:
        yield 0
    elif demand.gpus is not None:
        yield demand.gpus
    else:
        count = demand.groups
        # At least one, so that an error has a reason.
        while count == demand.groups or count <= hardware.count:
            yield count
            count *= 2


def _refused(variant: str, facts: ModelFacts, hardware: Hardware, engine: Engine) -> str | None:
    """Why the hardware doesn't run a variant. A checkpoint that came quantized needs kernels for its own format."""
    # First what no other variant of the model would change.
    if hardware.gpu is None and (unserved := cpu_model_refusal(engine.value, facts.model_type)):
        return unserved
    if engine is Engine.VLLM and not _is_loaded(facts):
        return f"vLLM doesn't load {facts.quantization} checkpoints"
    kernels = kernels_of(variant, facts)
    refused = refusal(hardware, kernels, engine, experts=facts.quantized_experts)
    if refused is None and _in_float32(facts, hardware) and kernels != DEFAULT_VARIANT:
        gpu = hardware.gpu.name if hardware.gpu else "a CPU"
        refused = (
            f"{gpu} computes {facts.model_type} in float32, for which vLLM has no {kernels} kernels"
        )
    return refused


def _is_loaded(facts: ModelFacts) -> bool:
    """Whether vLLM loads the checkpoint's quantization, if it has one."""
    return not facts.quantization or facts.quantization in LOADED_BY_VLLM


def _in_float32(facts: ModelFacts, hardware: Hardware) -> bool:
    return compute_dtype(hardware.gpu, facts.model_type) == FLOAT32


def _computed(facts: ModelFacts, hardware: Hardware) -> ModelFacts:
    """The facts on this hardware: computing in float32 doubles weights, cache and activations."""
    if not _in_float32(facts, hardware):
        return facts
    return replace(
        facts,
        weight_bytes=2 * facts.weight_bytes,
        kv_cache_bytes_per_token=2 * facts.kv_cache_bytes_per_token,
        gpu_memory_bytes=2 * facts.gpu_memory_bytes,
    )


def _unsplittable(facts: ModelFacts, demand: Demand, gpus: int) -> str | None:
    """Why vLLM doesn't start with this number of GPUs; None if it does, or if the record doesn't say."""
    sizes, size = facts.tensor_parallel_sizes, gpus // demand.groups
    # With expert parallelism, experts stay whole, so more sizes than the record's work.
    if not gpus or not sizes or demand.expert_parallel or size in sizes:
        return None
    counts = [each * demand.groups for each in sizes]
    return f"vLLM splits it among {_or(counts)} GPUs, not {gpus}"


def _or(counts: list[int]) -> str:
    words = [str(each) for each in counts]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _budget(hardware: Hardware, demand: Demand) -> int | None:
    """Memory of one GPU, or of the machine, available to the server; None when unknown."""
    if hardware.gpu is not None:
        return int(hardware.gpu.memory_bytes * demand.utilization)
    return hardware.memory_bytes or None


def _obstacle(
    variant: str, facts: ModelFacts, hardware: Hardware, demand: Demand, gpus: int
) -> str | None:
    refused = _refused(variant, facts, hardware, demand.engine) or _unsplittable(
        facts, demand, gpus
    )
    if refused is not None:
        return refused if variant in refused else f"{variant}: {refused}"
    if demand.context and facts.context_length and demand.context > facts.context_length:
        return f"{variant}: the model's context is {facts.context_length} tokens, {demand.context} are requested"
    budget = _budget(hardware, demand)
    need = needed_bytes(
        facts,
        context=_least_context(facts, demand),
        gpus=gpus // demand.data,
        pipeline=demand.pipeline,
        nodes=demand.nodes,
    )
    # Unknown memory must not refuse a model that may fit.
    if budget is None or need <= budget:
        return None
    where = f"on {gpus} GPU{'s' * (gpus > 1)}, each" if gpus else "of memory,"
    if demand.nodes > 1:
        where = (
            f"on {gpus} GPUs of {demand.nodes} nodes, each"
            if gpus
            else f"on {demand.nodes} nodes, each"
        )
    return f"{variant} needs {need / 1e9:.1f} GB {where} offering {budget / 1e9:.1f} GB"


def _least_context(facts: ModelFacts, demand: Demand) -> int:
    return demand.context or min(facts.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _kv_dtypes(hardware: Hardware, demand: Demand) -> tuple[str, ...]:
    """KV cache formats to try, most accurate first."""
    if demand.kv_dtype is not None:
        return (demand.kv_dtype,)
    runs_fp8 = hardware.gpu is not None and hardware.gpu.capability >= _FP8_CAPABILITY
    return (KV_NATIVE, KV_FP8) if runs_fp8 else (KV_NATIVE,)


def _with_cache(facts: ModelFacts, kv_dtype: str) -> ModelFacts:
    """The facts with a token's bytes in this format; the overhead stays the same."""
    if not kv_dtype.startswith(KV_FP8):
        return facts
    tokens = min(facts.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    halved = -(-facts.kv_cache_bytes_per_token // 2)
    saved = tokens * (facts.kv_cache_bytes_per_token - halved)
    return replace(
        facts,
        kv_cache_bytes_per_token=halved,
        gpu_memory_bytes=max(0, facts.gpu_memory_bytes - saved),
    )


def _tokens_that_fit(
    facts: ModelFacts, hardware: Hardware, demand: Demand, gpus: int
) -> int | None:
    """KV cache capacity in tokens, in whole blocks: GPU memory left by weights and overhead."""
    budget = _budget(hardware, demand)
    if hardware.gpu is None or budget is None or not facts.kv_cache_bytes_per_token:
        return None
    ways = gpus // demand.data
    shares = _cache_shares(facts, ways, demand.pipeline)
    free = (budget - overhead_bytes(facts)) * ways - _held_bytes(facts, ways)
    return max(0, free * shares // ways // facts.kv_cache_bytes_per_token // _BLOCK * _BLOCK)


def _context(
    facts: ModelFacts, hardware: Hardware, demand: Demand, fitting: int | None
) -> int | None:
    if demand.context is not None:
        return demand.context
    if not facts.kv_cache_bytes_per_token or not facts.context_length:
        return None
    least = _least_context(facts, demand)
    if hardware.gpu is None or fitting is None:
        return least
    return max(least, min(facts.context_length, fitting))

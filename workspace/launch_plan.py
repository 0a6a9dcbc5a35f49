"""Turns a spec, the image's records and the hardware into one LaunchPlan: command line, environment, probes.

Every way to run a Workspace (a child process, a pod, a compose service, llm-d) is rendered from the same plan, so the
server's command line is the same everywhere. Pure: no files, no network, no clock; `Site` carries what differs between
targets. The user's `runtime.args` override derived arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Final

from modelimage.architectures import has_stages, is_draft, own_adapters
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.gguf import gguf_files
from workspace import arguments, engine_arguments, node_groups
from workspace.engines import TEMPLATES, Launch, Template
from workspace.field_types import MOST_NODES
from workspace.fit import KV_NATIVE, Demand, Fit, choose
from workspace.hardware import DEFAULT_UTILIZATION, Hardware, compute_dtype, kernels_of
from workspace.node_groups import GroupAddress
from workspace.runtime_spec import Engine, EnvVar
from workspace.schema import Spec, Workspace
from workspace.servable import Servable
from workspace.served_file import of_file
from workspace.sources import is_pinned

_GIB: Final = 1 << 30

# Seconds. A start loads the interpreter and imports, reads weights, then (on GPUs) compiles and
# captures graphs; published cold starts compile for up to 195 s. A probe counts seconds, not
# progress, so it must outlast a start on a busy machine; a server that fails exits long before.
_BOOT: Final = 600
_COMPILE: Final = 300
_READ_TIMES: Final = 3
_SLOWEST_READ: Final = 150_000_000  # bytes a second: a network disk
PROBE_PERIOD: Final = 5

_ROOT_ADAPTER: Final = "adapter"  # the name of one beside the model's weights
_REMOTE_CODE: Final = "--trust-remote-code"
_CPU_CACHE: Final = "VLLM_CPU_KVCACHE_SPACE"
_CPU_SEQUENCES: Final = 4  # full-length requests that a CPU server's KV cache holds


@dataclass(frozen=True, slots=True)
class Site:
    """Where the server will run: directories of the model and the adapters, and the listening address.

    `read_rate` is the rate of reading weights in bytes a second; None when not measured. `group` is where the processes
    of a replica on several nodes find each other; None where all run on one machine.
    """

    model_dir: PurePosixPath
    host: str
    port: int
    read_rate: float | None = None
    adapter_dirs: Mapping[str, PurePosixPath] = field(default_factory=dict)
    group: GroupAddress | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """Startup limit: a start is abandoned `startup_seconds` after it began. `path` returns 200 once requests are
    served.
    """

    path: str
    startup_seconds: int
    period_seconds: int = PROBE_PERIOD

    @property
    def startup_failures(self) -> int:
        """The startup probe's failureThreshold in Kubernetes."""
        return -(-self.startup_seconds // self.period_seconds)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One server to start. `gpus` 0 means a CPU server; `reasons` explains why better variants weren't chosen.

    On several `nodes` the process with `args` leads, and those on the others get `worker_args`.
    `kernels` names those that the weights need: a published quantization, else the variant.
    """

    name: str
    engine: Engine
    key: Digest
    variant: str
    kernels: str
    served_name: str
    args: tuple[str, ...]
    env: tuple[EnvVar, ...]
    port: int
    gpus: int
    context: int | None
    probes: Probes
    reasons: tuple[str, ...]
    nodes: int = 1
    worker_args: tuple[str, ...] = ()

    @property
    def node_gpus(self) -> int:
        """GPUs of each node."""
        return self.gpus // self.nodes

    @property
    def template(self) -> Template:
        return TEMPLATES[self.engine]


def choose_variant(
    workspace: Workspace, records: Mapping[str, Servable], hardware: Hardware
) -> Fit:
    """Chooses variant, GPUs and context; needs no site. Raises DoesNotFit, UnknownVariant, InvalidInput.

    `records` are the image's records by variant.
    """
    spec = workspace.spec
    user = spec.runtime.args
    node_groups.check_arguments(spec)
    # These flags change the fit itself, so the user's values enter it instead of only being passed
    # on.
    pipeline, data = _parallel_sizes(spec)
    context = spec.runtime.context_length
    if "--max-model-len" in arguments.given(user):
        context = arguments.length_of(user, "--max-model-len")
    demand = Demand(
        variant=spec.model.variant,
        context=context,
        gpus=_requested_gpus(spec, groups=pipeline * data),
        utilization=_utilization(spec),
        kv_dtype=engine_arguments.kv_dtype(spec.runtime.engine, user),
        engine=spec.runtime.engine,
        pipeline=pipeline,
        data=data,
        expert_parallel="--enable-expert-parallel" in arguments.given(user),
        nodes=spec.resources.nodes,
        most_nodes=MOST_NODES if _may_spread(spec, records, hardware) else 1,
    )
    environment = {each.name: each.value or "" for each in spec.runtime.env}
    served = {
        variant: engine_arguments.served_facts(
            of_file(record, spec.model.file).facts, user, environment
        )
        for variant, record in records.items()
    }
    return choose(served, hardware, demand)


def _may_spread(spec: Spec, records: Mapping[str, Servable], hardware: Hardware) -> bool:
    """Whether spec.resources.nodes could be more, and is all that would have to change."""
    resources, given = spec.resources, arguments.given(spec.runtime.args)
    return (
        hardware.gpu is not None
        and bool(TEMPLATES[spec.runtime.engine].worker_command)
        and not (resources.fraction or resources.mig_profile)
        and not any("parallel-size" in flag for flag in given)
        and all(has_stages(each.facts.architecture) for each in records.values())
    )


def _parallel_sizes(spec: Spec) -> tuple[int, int]:
    """The pipeline and data parallel sizes. Data parallel groups on other machines take no GPUs here."""
    user = spec.runtime.args
    pipeline = arguments.count_of(user, "--pipeline-parallel-size") or spec.resources.nodes
    # SGLang's attention then divides the GPUs of its tensor parallel group.
    if "--enable-dp-attention" in arguments.given(user):
        return pipeline, 1
    local = arguments.count_of(user, "--data-parallel-size-local")
    return pipeline, local or arguments.count_of(user, "--data-parallel-size") or 1


def _requested_gpus(spec: Spec, *, groups: int) -> int | None:
    """The GPUs of one replica, where the spec decides them. Raises InvalidInput if the groups can't share them."""
    tensor = arguments.count_of(spec.runtime.args, "--tensor-parallel-size")
    gpus = spec.resources.gpus or None
    if tensor is not None:
        return tensor * groups
    if gpus is not None and gpus % groups:
        raise InvalidInput(
            f"spec.resources.gpus is {gpus}, which {groups} tensor parallel groups can't share",
            hint="Make it a multiple of the pipeline and data parallel sizes in spec.runtime.args.",
        )
    return gpus


def plan_launch(
    workspace: Workspace,
    *,
    record: Servable,
    fit: Fit,
    hardware: Hardware,
    site: Site,
    lora_ranks: Sequence[int] = (),
) -> LaunchPlan:
    """The plan for a chosen variant. Raises InvalidInput when engine and model, or args and spec, conflict.

    The site must have a directory for every adapter of the spec. `lora_ranks` are the adapters' ranks, 0 where unknown.
    """
    spec = workspace.spec
    # From here on with the chosen file's sizes, by which it was fitted.
    record = of_file(record, spec.model.file)
    template = TEMPLATES[spec.runtime.engine]
    _check_format(spec.runtime.engine, template, record)
    _check_complete(record)
    _check_fixed(template, spec.runtime.args)
    _check_code(spec)
    if spec.runtime.engine is Engine.VLLM:
        engine_arguments.check_dtype(record.facts, hardware.gpu, spec.runtime.args)
    pipeline, _ = _parallel_sizes(spec)
    node_groups.check_stages(
        spec, architecture=record.facts.architecture, pipeline=pipeline, gpus=fit.gpus
    )
    gguf = gguf_files(file.path for file in record.files)
    launch = Launch(
        model_dir=site.model_dir,
        gguf_file=gguf.parts[0] if gguf else None,
        projector=gguf.projector if gguf else None,
        lora_files=gguf.adapters if gguf else (),
        sampling=record.facts.sampling,
        served_name=spec.runtime.served_model_name or workspace.name,
        host=site.host,
        port=site.port,
        gpus=fit.gpus,
        context=fit.context,
        dtype=compute_dtype(hardware.gpu, record.facts.model_type),
        utilization=_utilization(spec),
        sequences=engine_arguments.sequences(
            _kv_tokens(spec, record=record, fit=fit, hardware=hardware)
        ),
        kv_dtype=None if fit.kv_dtype == KV_NATIVE else fit.kv_dtype,
        prefix_caching=engine_arguments.caches_prefixes(record.facts),
        adapters=(*_own_adapters(spec, record, site), *_adapters(spec, site)),
        tensor_parallel=fit.tensor_parallel,
        pooling=record.facts.pooling,
        lora_rank=engine_arguments.lora_rank((record.facts.lora_rank, *lora_ranks)),
        traces=spec.runtime.tracing.endpoint if spec.runtime.tracing else None,
        group=node_groups.address(spec, site.group),
        nodes=spec.resources.nodes,
        pipeline=pipeline,
    )
    worker = template.arguments(replace(launch, leads=False)) if launch.group else ()
    return LaunchPlan(
        name=workspace.name,
        engine=spec.runtime.engine,
        key=record.key,
        variant=fit.variant,
        kernels=kernels_of(fit.variant, record.facts),
        served_name=_served_name(spec, launch),
        args=arguments.merge(template.arguments(launch), spec.runtime.args),
        env=_environment(spec, record=record, fit=fit, hardware=hardware),
        port=site.port,
        gpus=fit.gpus,
        context=fit.context,
        probes=Probes(
            template.health_path,
            spec.runtime.startup_seconds or startup_seconds(record, site, gpus=fit.gpus),
        ),
        reasons=fit.reasons,
        nodes=launch.nodes,
        worker_args=arguments.merge(worker, spec.runtime.args) if worker else (),
    )


def _adapters(spec: Spec, site: Site) -> Iterator[tuple[str, PurePosixPath]]:
    for each in spec.runtime.adapters:
        yield each.name, site.adapter_dirs[each.name]


def _own_adapters(spec: Spec, record: Servable, site: Site) -> Iterator[tuple[str, PurePosixPath]]:
    """The adapters that the model brings, named after their folders. A name in the spec wins."""
    taken = {each.name for each in spec.runtime.adapters}
    paths = [file.path for file in record.files]
    for folder in own_adapters(record.facts.architecture, paths):
        name = folder.rpartition("/")[2] or _ROOT_ADAPTER
        if spec.runtime.engine is Engine.VLLM and name not in taken:
            yield name, site.model_dir / folder


def check_environment(workspace: Workspace) -> None:
    """Raises InvalidInput for Secrets and for other nodes, which exist only in clusters."""
    node_groups.address(workspace.spec, None)
    for each in workspace.spec.runtime.env:
        if each.secret is not None:
            raise InvalidInput(
                f"spec.runtime.env: {each.name} comes from a Secret, which this machine doesn't have",
                hint=f"Give {each.name} a value, or remove it for `weightyard up`.",
            )


def startup_seconds(record: Servable, site: Site, *, gpus: int) -> int:
    """Seconds that a start may take, from the size of the weights and the read rate."""
    # At least 1: a measured rate may be close to 0.
    rate = max(site.read_rate or _SLOWEST_READ, 1.0)
    reading = record.facts.weight_bytes / rate
    return int(_BOOT + (_COMPILE if gpus else 0) + _READ_TIMES * reading)


def _utilization(spec: Spec) -> float:
    requested = arguments.number_of(spec.runtime.args, "--gpu-memory-utilization")
    if requested is not None:
        return min(requested, 1.0)
    # On a shared GPU each server takes its part of the usual share.
    return DEFAULT_UTILIZATION * (spec.resources.fraction or 1.0)


def _served_name(spec: Spec, launch: Launch) -> str:
    return arguments.value_of(spec.runtime.args, "--served-model-name") or launch.served_name


def _check_format(engine: Engine, template: Template, record: Servable) -> None:
    if record.facts.format not in template.formats:
        raise InvalidInput(
            f"{engine.value} serves {' or '.join(sorted(template.formats))}, the model is {record.facts.format}",
            hint="Choose another spec.runtime.engine, or an image built from a checkpoint in that format.",
        )


def _check_complete(record: Servable) -> None:
    """Refuses a model that answers nothing alone."""
    if is_draft(record.facts.architecture):
        raise InvalidInput(
            f"{record.facts.architecture} is a draft for speculative decoding, which proposes tokens for another model",
            hint="Serve the model that it was made for.",
        )


def _check_fixed(template: Template, user: tuple[str, ...]) -> None:
    """Refuses user arguments that the plan itself sets: probes, Services and mounts depend on them."""
    clash = sorted(arguments.given(user) & template.fixed_flags)
    if clash:
        raise InvalidInput(
            f"spec.runtime.args can't contain {', '.join(clash)}: Weightyard sets it",
            hint="The port is spec.runtime.port; the model is spec.model.",
        )


def _check_code(spec: Spec) -> None:
    """Refuses a model's code where it can change: who allowed it read it in one image, not in the next version."""
    words = [word for word in spec.runtime.args if not word.startswith("--no-")]
    if _REMOTE_CODE in arguments.given(words) and not is_pinned(spec.model):
        raise InvalidInput(
            f"{_REMOTE_CODE} runs a model's own code, and spec.model names one whose contents can change",
            hint="Read the code, then name the image by digest: spec.model.image: REGISTRY/REPOSITORY@sha256:…",
        )


def _environment(
    spec: Spec, *, record: Servable, fit: Fit, hardware: Hardware
) -> tuple[EnvVar, ...]:
    # The model directory is complete and read-only: an engine must not contact the Hub or send
    # usage data.
    derived = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if hardware.gpu is None and spec.runtime.engine is Engine.VLLM:
        derived[_CPU_CACHE] = str(_cpu_cache_gib(record, fit, hardware))
    taken = {each.name for each in spec.runtime.env}
    kept = tuple(EnvVar(name=n, value=v) for n, v in sorted(derived.items()) if n not in taken)
    return kept + spec.runtime.env


def _kv_tokens(spec: Spec, *, record: Servable, fit: Fit, hardware: Hardware) -> int | None:
    """KV cache capacity in tokens: from the GPUs' free memory, or from vLLM's CPU setting; None when unknown."""
    if hardware.gpu is not None:
        return fit.kv_tokens
    given_by_user = any(each.name == _CPU_CACHE for each in spec.runtime.env)
    is_given = spec.runtime.engine is Engine.VLLM and not given_by_user
    if not is_given or not record.facts.kv_cache_bytes_per_token:
        return None
    given = _cpu_cache_gib(record, fit, hardware) * _GIB * spec.resources.nodes
    return given // record.facts.kv_cache_bytes_per_token


def _cpu_cache_gib(record: Servable, fit: Fit, hardware: Hardware) -> int:
    """GiB of KV cache on a CPU: a few full-length requests, at most half of the memory left by the weights.

    Of a replica on several nodes, the GiB of each.
    """
    tokens = _CPU_SEQUENCES * (fit.context or 0)
    wanted = -(-tokens * record.facts.kv_cache_bytes_per_token // (_GIB * fit.nodes))
    if not hardware.memory_bytes:
        return max(1, wanted)
    free = hardware.memory_bytes - record.facts.weight_bytes // fit.nodes
    return max(1, min(wanted, free // 2 // _GIB))

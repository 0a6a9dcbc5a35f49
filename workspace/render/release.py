"""One planned and pinned version of a Workspace: the input of every renderer.

Images are digests here, so that all replicas, today's and next month's, serve the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from workspace.engines import Template
from workspace.fit import Fit, needed_bytes
from workspace.hardware import Hardware
from workspace.launch_plan import LaunchPlan, Site, choose_variant, plan_launch
from workspace.node_groups import GroupAddress
from workspace.render import names
from workspace.runtime_spec import DEFAULT_PORT
from workspace.schema import Workspace
from workspace.servable import Servable
from workspace.served_file import of_file

_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - inside a container, where ports and policies restrict access
_RUNTIME_MEMORY: Final = 4 << 30  # interpreter, CUDA context and host buffers of one server
_CPU_RUNTIME_MEMORY: Final = 1 << 30  # interpreters of a server without CUDA
_GPU_CPUS: Final = 2  # for each GPU
# A CPU server reads all weights for each token: one more core for every 2 GiB of them.
_BYTES_PER_CPU: Final = 2 << 30
_MOST_CPUS: Final = 16
# What LeaderWorkerSet tells each container of a group.
# Kubernetes replaces $(NAME) in arguments by the container's variable.
_GROUP: Final = GroupAddress(leader="$(LWS_LEADER_ADDRESS)", worker_rank="$(LWS_WORKER_INDEX)")


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A resolved model: its image by digest, and its records by variant."""

    image: str
    records: Mapping[str, Servable]


@dataclass(frozen=True, slots=True)
class PinnedAdapter:
    """A LoRA adapter's image by digest, its model key, and its rank; 0 if its record doesn't state it."""

    image: str
    key: Digest
    rank: int = 0


@dataclass(frozen=True, slots=True)
class ResolvedImages:
    """A Workspace's resolved images."""

    model: PinnedModel
    adapters: Mapping[str, PinnedAdapter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Release:
    """A plan with its images by digest. `memory_bytes` and `cpus` are what a replica needs of each of its hosts."""

    plan: LaunchPlan
    model: str
    runtime_image: str
    memory_bytes: int
    cpus: int
    adapters: Mapping[str, PinnedAdapter] = field(default_factory=dict)

    @property
    def key(self) -> Digest:
        return self.plan.key

    @property
    def template(self) -> Template:
        return self.plan.template


# Returns the server's Site for a model key and its adapters' keys.
SiteFactory = Callable[[Digest, Mapping[str, Digest]], Site]


def pod_site(workspace: Workspace, *, read_rate: float | None = None) -> SiteFactory:
    """The Site in a pod: volumes at fixed directories, all addresses, the Workspace's port."""

    def site_of(_: Digest, adapters: Mapping[str, Digest]) -> Site:
        return Site(
            model_dir=PurePosixPath(names.MODEL_DIR),
            host=_EVERYWHERE,
            port=server_port(workspace),
            read_rate=read_rate,
            adapter_dirs={name: PurePosixPath(names.ADAPTERS_DIR, name) for name in adapters},
            group=_GROUP,
        )

    return site_of


def store_site(
    workspace: Workspace, root: PurePosixPath, *, host: str = _EVERYWHERE
) -> SiteFactory:
    """The Site beside an agent's store at `root`: each model in its key's directory."""

    def site_of(model: Digest, adapters: Mapping[str, Digest]) -> Site:
        return Site(
            model_dir=root / "models" / model.hex,
            host=host,
            port=server_port(workspace),
            adapter_dirs={name: root / "models" / key.hex for name, key in adapters.items()},
        )

    return site_of


def server_port(workspace: Workspace) -> int:
    """The server's port. 0 (any free port) becomes the default port, since renderers must name one."""
    return workspace.spec.runtime.port or DEFAULT_PORT


def plan_release(
    workspace: Workspace, resolved: ResolvedImages, *, hardware: Hardware, site_of: SiteFactory
) -> Release:
    """Plans a version: variant, GPUs, context, command line, images. Raises the planner's errors."""
    fit = choose_variant(workspace, resolved.model.records, hardware)
    record = of_file(resolved.model.records[fit.variant], workspace.spec.model.file)
    site = site_of(record.key, {name: each.key for name, each in resolved.adapters.items()})
    plan = plan_launch(
        workspace,
        record=record,
        fit=fit,
        hardware=hardware,
        site=site,
        lora_ranks=[each.rank for each in resolved.adapters.values()],
    )
    return Release(
        plan=plan,
        model=resolved.model.image,
        runtime_image=_runtime_image(workspace, plan),
        memory_bytes=_host_memory(fit, record),
        cpus=_GPU_CPUS * fit.node_gpus
        or min(_MOST_CPUS, 1 + record.facts.weight_bytes // (_BYTES_PER_CPU * fit.nodes)),
        adapters=resolved.adapters,
    )


def _host_memory(fit: Fit, record: Servable) -> int:
    """Bytes of host memory. On GPUs the weights only pass through it; a CPU server keeps them and its cache there."""
    if fit.gpus:
        return _RUNTIME_MEMORY * fit.node_gpus
    return _CPU_RUNTIME_MEMORY + needed_bytes(
        record.facts, context=fit.context or 0, gpus=0, pipeline=fit.groups, nodes=fit.nodes
    )


def _runtime_image(workspace: Workspace, plan: LaunchPlan) -> str:
    requested = workspace.spec.runtime.image
    if requested is not None:
        return requested
    vendor = workspace.spec.resources.vendor
    image = plan.template.images.get(vendor) if plan.gpus else plan.template.cpu_image
    if image is None:
        device = f"{vendor.value} GPUs" if plan.gpus else "CPUs"
        raise InvalidInput(
            f"no image of {plan.engine.value} for {device} is known",
            hint="Set spec.runtime.image, or choose another spec.runtime.engine.",
        )
    return image

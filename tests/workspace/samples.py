"""Workspaces, records and releases to test with: real sizes of real models, no files behind them."""

from __future__ import annotations

from typing import Any

from modelimage.digest import Digest
from modelimage.record import ModelFacts, Record
from workspace.hardware import Hardware, requested_hardware
from workspace.render.release import (
    PinnedAdapter,
    PinnedModel,
    Release,
    ResolvedImages,
    SiteFactory,
    plan_release,
    pod_site,
)
from workspace.schema import Workspace

IMAGE = "registry.example/team/llama:v1"
GB = 10**9


def facts(*, weight_bytes: int = 16 * GB, **more: Any) -> ModelFacts:
    """Llama-3.1-8B in bfloat16, unless said otherwise."""
    default: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "parameters": 8_030_261_248,
        "kv_cache_bytes_per_token": 131_072,
        "gpu_memory_bytes": weight_bytes + 8192 * 131_072 + 2 * GB,
        "context_length": 131_072,
        "dtype": "bfloat16",
    }
    return ModelFacts(weight_bytes=weight_bytes, **(default | more))


def record(variant: str = "bf16", *, revision: str = "c0ffee", **more: Any) -> Record:
    """The record of one variant; `revision` makes another model of it."""
    return Record(
        variant=variant,
        source="hf://meta/llama",
        revision=revision,
        license="llama3.1",
        facts=facts(**more),
        files=(),
        layers=(),
    )


def pinned(
    revision: str = "c0ffee", *, variants: tuple[str, ...] = ("bf16", "int8", "int4")
) -> PinnedModel:
    """An image with some variants, each smaller than the one before."""
    sizes = {"bf16": 16 * GB, "int8": 9 * GB, "int4": 6 * GB}
    digest = Digest.of(revision.encode())
    return PinnedModel(
        f"registry.example/team/llama@{digest}",
        {v: record(v, revision=revision, weight_bytes=sizes[v]) for v in variants},
    )


def document(
    name: str = "chat", *, namespace: str | None = "team-a", **spec: Any
) -> dict[str, Any]:
    """A Workspace document; `spec` replaces whole parts of its spec."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    default = {"model": {"image": IMAGE}, "resources": {"gpu": "L4"}}
    return {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": metadata,
        "spec": default | spec,
    }


def workspace(name: str = "chat", *, namespace: str | None = "team-a", **spec: Any) -> Workspace:
    return Workspace.model_validate(document(name, namespace=namespace, **spec))


def resolved(each: Workspace, model: PinnedModel | None = None) -> ResolvedImages:
    """What the registry would say of a Workspace's images."""
    adapters = {
        adapter.name: PinnedAdapter(f"{adapter.image}@{digest}", digest)
        for adapter in each.spec.runtime.adapters
        for digest in [Digest.of(adapter.name.encode())]
    }
    return ResolvedImages(model or pinned(), adapters)


def release(
    each: Workspace, *, site_of: SiteFactory | None = None, hardware: Hardware | None = None,
    model: PinnedModel | None = None,
) -> Release:  # fmt: skip
    """A decided version of a Workspace, for a pod unless another site is given."""
    return plan_release(
        each,
        resolved(each, model),
        hardware=hardware or requested_hardware(each.spec.resources),
        site_of=site_of or pod_site(each),
    )

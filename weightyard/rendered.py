"""Rendered files as text that people read, change and keep: plain YAML under a header that says what it needs.

No anchors, since tools that edit YAML drop them or choke on them; scripts as they are read, one line each.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml

from cache_agent.api.shared_names import CSI_DRIVER
from workspace.launch_plan import LaunchPlan
from workspace.node_demands import GPU_PRESENT
from workspace.provisioning_spec import Provisioner
from workspace.render.karpenter import pool_taints
from workspace.render.release import Release
from workspace.render.standalone import undemanded_gpu
from workspace.scale_spec import Autoscaler
from workspace.schema import Workspace
from workspace.template_spec import PodTemplate

Json = dict[str, Any]
_WIDTH: Final = 120

_EXPLAINED: Final[Mapping[str, tuple[str, ...]]] = {
    "kubernetes": (
        f"Weightyard's agents on the nodes (its chart): volumes use the driver {CSI_DRIVER}.",
    ),
    "compose": (
        "Docker Compose or podman-compose. Logins of ${DOCKER_CONFIG:-~/.docker} are mounted into the agent.",
    ),
    "llm-d": (
        "values for llm-d's chart llm-d-modelservice 0.4, and Weightyard's agents on the nodes: volumes use the"
        f" driver {CSI_DRIVER}.",
        "modelArtifacts: a name and labels only; nothing is downloaded, since mountModelVolume is false.",
        "routing.proxy: off, since it serves split prefill and decode; decode.containers: the server itself.",
        "a pool that routes to it: `weightyard render --to llm-d-pool` with the same file.",
    ),
    "llm-d-pool": (
        "the InferencePool kind (Gateway API inference extension) and a gateway that knows it.",
        "the endpoint picker that endpointPickerRef names, which this file doesn't have: the inference extension's"
        " chart `inferencepool` makes it, and calls it after its release.",
    ),
    "karpenter": (
        "Karpenter (karpenter.sh/v1) and the node class that nodeClassRef names.",
        "Weightyard's chart: its agents tolerate the startup taint, and its controller takes it away.",
    ),
    "up": (),
}  # fmt: skip


_CLUSTERS: Final = ("kubernetes", "llm-d")
_MACHINES: Final = ("compose", "up")
# By field, the targets whose files leave it out; `scale` and `replicas` depend on their values too.
_NO_EFFECT: Final[Mapping[str, tuple[str, ...]]] = {
    "route": (*_CLUSTERS, *_MACHINES),
    "rollout": (*_CLUSTERS, *_MACHINES),
    "scale": ("llm-d", *_MACHINES),
    "placement": _MACHINES,
    "tenancy": ("llm-d", *_MACHINES),
    "template": _MACHINES,
    # The chart selects its pods by all labels that they have, and gives GPUs to each of their containers.
    "template.labels": ("llm-d",),
    "template.sidecars": ("llm-d",),
    "resources.nodeSelector": _MACHINES,
    "resources.tolerations": _MACHINES,
    "resources.provisioning": _MACHINES,
    "resources.provisioning.queue": ("llm-d",),
    "resources.provisioning.warmSpares": _CLUSTERS,
}


class _Plain(yaml.SafeDumper):
    """Writes equal parts in full each time, and texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Plain.add_representer(str, _text)


def rendered_text(documents: Sequence[Json], header: Iterable[str]) -> str:
    """The documents as YAML below a header of comments."""
    # In the order in which they are made, `apiVersion` and `kind` first, as people write them.
    body = yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=_WIDTH)
    return "\n".join([*_comments(header), body.rstrip("\n")])


def _comments(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(
            line, _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def header(
    workspace: Workspace, release: Release, *, target: str, file: str, version: str,
    scraped_from: str | None,
) -> list[str]:  # fmt: skip
    """What made the file, from what, and what it needs where it is used. Names secrets, never their values."""
    plan = release.plan
    return [
        f"Rendered by weightyard {version} for {target}; change {file} and render it again.",
        f"Workspace {workspace.name}: {release.model}, variant {plan.variant}, {_gpus(plan)}.",
        *(f"Adapter {name}: {each.image}." for name, each in sorted(release.adapters.items())),
        *(f"Needs: {each}" for each in _EXPLAINED[target]),
        *(f"Needs: {each}" for each in _needs(workspace, release, target)),
        *_without_effect(workspace, target),
        *_metrics(target, scraped_from),
        *(
            ["For reading: the command that `weightyard up` starts on this machine."]
            if target == "up"
            else []
        ),
    ]


def _needs(workspace: Workspace, release: Release, target: str) -> Iterator[str]:
    secrets = [(each.name, each.secret) for each in release.plan.env if each.secret is not None]
    if target in ("kubernetes", "llm-d"):
        if workspace.spec.model.pull_secret:
            yield f"the Secret {workspace.spec.model.pull_secret}, with the registry's login."
        yield from (f"the Secret {secret.name} with the key {secret.key}." for _, secret in secrets)
        if missing := undemanded_gpu(workspace, release):
            yield f"{missing}."
        elif release.plan.gpus:
            yield "nodes labelled by GPU feature discovery, or as nodeSelector says."
        yield from _of_template(workspace.spec.template)
        yield from _others(workspace, release, target)
    # A NodePool starts no server, so it needs none of the above.
    elif target == "karpenter":
        yield from _agents(workspace, gpus=release.plan.gpus)
    elif target == "compose":
        yield from (f"the variable {name} in the environment." for name, _ in secrets)


def _of_template(template: PodTemplate) -> Iterator[str]:
    """What spec.template names, which others make."""
    classes = {
        "the RuntimeClass": template.runtime_class_name,
        "the PriorityClass": template.priority_class_name,
        "the scheduler": template.scheduler_name,
        "the ServiceAccount": template.service_account_name,
    }
    yield from (f"{what} {name}." for what, name in classes.items() if name)
    for each in template.volumes:
        if each.config_map:
            yield f"the ConfigMap {each.config_map.name}."
        if each.secret:
            yield f"the Secret {each.secret.secret_name}."
        if each.persistent_volume_claim:
            yield f"the PersistentVolumeClaim {each.persistent_volume_claim.claim_name}."
    for sidecar in template.sidecars:
        for variable in sidecar.env:
            if variable.secret:
                yield f"the Secret {variable.secret.name} with the key {variable.secret.key}."


def _others(workspace: Workspace, release: Release, target: str) -> Iterator[str]:
    """Programs that others install: they make nodes and groups, admit pods, and scale."""
    provisioning, scale = workspace.spec.resources.provisioning, workspace.spec.scale
    if provisioning and provisioning.by is Provisioner.KARPENTER:
        yield "Karpenter with a NodePool that fits, such as `weightyard render --to karpenter` makes of the same file."
    # The values of llm-d's chart have neither queues nor groups nor autoscalers.
    if target != "kubernetes":
        return
    if provisioning and provisioning.queue:
        yield f"Kueue, and its LocalQueue {provisioning.queue} in the namespace."
    if release.plan.nodes > 1:
        yield "LeaderWorkerSet (leaderworkerset.x-k8s.io)."
    if scale and scale.by is Autoscaler.HPA:
        yield "an adapter that offers the servers' metrics to HorizontalPodAutoscalers (custom.metrics.k8s.io)."
    if scale and scale.by is Autoscaler.KEDA:
        yield f"KEDA (keda.sh), and the Prometheus {scale.prometheus}."


def _gpus(plan: LaunchPlan) -> str:
    if not plan.gpus:
        return "no GPU"
    of_each = f"{plan.node_gpus} GPU{'s' if plan.node_gpus > 1 else ''}"
    return f"{plan.nodes} nodes of {of_each}" if plan.nodes > 1 else of_each


def without_effect(workspace: Workspace, target: str) -> list[str]:
    """The fields that the spec gives and that a target leaves out."""
    spec, scale = workspace.to_document()["spec"], workspace.spec.scale
    found = [
        path
        for path, targets in _NO_EFFECT.items()
        if target in targets and _given(spec, path.split(".")) not in (None, {}, [])
    ]
    # The built-in scaler is the controller; the objects of the others are in the file.
    if target == "kubernetes" and scale and scale.by is Autoscaler.BUILTIN:
        found.append("scale")
    if target in _MACHINES and (workspace.spec.replicas or 1) > 1:
        found.append("replicas")
    return found


def _without_effect(workspace: Workspace, target: str) -> Iterator[str]:
    found, scale = without_effect(workspace, target), workspace.spec.scale
    without = "without the controller" if target == "kubernetes" else f"for {target}"
    if found:
        yield f"No effect {without}: {', '.join(found)}."
    if scale and "scale" in found and target not in _MACHINES:
        yield f"Replicas: {max(1, scale.min)}, and nothing scales them."


def _given(document: Json, path: Sequence[str]) -> Any:
    found: Any = document
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _agents(workspace: Workspace, *, gpus: int) -> Iterator[str]:
    """What the chart must say for agents to run on the pool's nodes: without one the startup taint stays."""
    own = [each["key"] for each in pool_taints(workspace, gpus=0)]
    if own:
        yield f"agents that tolerate {', '.join(own)}: agent.tolerations of the chart."
    if not gpus:
        yield (
            "agents on nodes without a GPU: agent.nodeSelector of the chart with a label that they have, or"
            f" {GPU_PRESENT}: null there for every node."
        )


def _metrics(target: str, scraped_from: str | None) -> Iterator[str]:
    if target != "kubernetes":
        return
    if scraped_from is None:
        yield "Metrics: pods of this namespace may read them; --scrape-from NAMESPACE opens them to its Prometheus."
    else:
        yield f"Metrics: annotated for Prometheus, and open to the namespace {scraped_from}."

"""Renders `spec.template`: what servers' pods have beside what Weightyard decides itself.

Only adds. Whoever puts the parts together writes Weightyard's own labels, annotations and names last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from workspace.render.containers import container_security, env_var, without_gpus
from workspace.render.quantities import canonical
from workspace.template_spec import PodTemplate, Sidecar, Volume, VolumeMount

Json = dict[str, Any]

# Fields of a pod that decide where it may run and before whom, which also apply to pods that stand in for servers.
PLACING: Final = ("priorityClassName", "runtimeClassName", "schedulerName")


def pod_fields(template: PodTemplate) -> Json:
    """Those fields of a pod's spec that are set as they are given."""
    given = template.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: given[name] for name in PLACING if name in given}


def pull_policy(template: PodTemplate) -> Json:
    """The part of a container that says when its image is pulled; empty leaves that to Kubernetes."""
    policy = template.image_pull_policy
    return {"imagePullPolicy": policy} if policy else {}


def file_group(template: PodTemplate, group: int) -> Json:
    """The part of a pod's security context by which its user may write to claims, whose files belong to root."""
    claims = [each.persistent_volume_claim for each in template.volumes]
    if all(each is None or each.read_only for each in claims):
        return {}
    # Changing the owner of all files at each start could take as long as reading them.
    return {"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"}


def spread_constraints(
    template: PodTemplate, own: Sequence[Json], selector: Mapping[str, str]
) -> list[Json]:
    """The template's constraints, and those of `own` for whose places it has none of the same kind.

    They count the pods of `selector`: others' pods are none of these servers'.
    """
    given = [
        {
            **each.model_dump(mode="json", by_alias=True, exclude_none=True),
            "labelSelector": {"matchLabels": dict(selector)},
        }
        for each in template.topology_spread_constraints
    ]
    # Kubernetes refuses two of the same key and kind.
    taken = {_kind(each) for each in given}
    return [*(each for each in own if _kind(each) not in taken), *given]


def volumes(template: PodTemplate) -> list[Json]:
    """The template's volumes."""
    return [_volume(each) for each in template.volumes]


def mounts(given: Iterable[VolumeMount]) -> list[Json]:
    """Mounts of the template's volumes in one container."""
    return [
        {
            "name": each.name,
            "mountPath": each.mount_path,
            **({"subPath": each.sub_path} if each.sub_path else {}),
            **({"readOnly": True} if each.read_only else {}),
        }
        for each in given
    ]


def sidecars(template: PodTemplate) -> list[Json]:
    """The template's containers, which come after the server's: tools take a pod's first container for its main one."""
    has_class = template.runtime_class_name is not None
    return [
        {**_sidecar(each, has_runtime_class=has_class), **pull_policy(template)}
        for each in template.sidecars
    ]


def _kind(constraint: Json) -> tuple[str, str]:
    return constraint["topologyKey"], constraint["whenUnsatisfiable"]


def _volume(each: Volume) -> Json:
    found = each.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if each.empty_dir is not None:
        # In the server's form, or every comparison would find a difference.
        found["emptyDir"]["sizeLimit"] = canonical(each.empty_dir.size_limit)
    return found


def _sidecar(each: Sidecar, *, has_runtime_class: bool) -> Json:
    ports = [
        {"name": port.name, "containerPort": port.container_port, "protocol": "TCP"}
        for port in each.ports
    ]
    asked = each.resources
    requests = {
        **({"cpu": canonical(asked.cpu)} if asked.cpu else {}),
        **({"memory": canonical(asked.memory)} if asked.memory else {}),
    }
    limits = {"memory": requests["memory"]} if asked.memory else {}
    env = [env_var(variable) for variable in each.env]
    # Whoever names the variable means it.
    if has_runtime_class and not any(v.name == "NVIDIA_VISIBLE_DEVICES" for v in each.env):
        env += without_gpus()
    return {
        "name": each.name,
        "image": each.image,
        **({"command": list(each.command)} if each.command else {}),
        **({"args": list(each.args)} if each.args else {}),
        **({"env": env} if env else {}),
        **({"ports": ports} if ports else {}),
        "resources": {
            **({"requests": requests} if requests else {}),
            **({"limits": limits} if limits else {}),
        },
        # The end of the log becomes the pod's status, as of the server.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        **({"volumeMounts": mounts(each.volume_mounts)} if each.volume_mounts else {}),
    }

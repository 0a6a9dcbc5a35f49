"""A Workspace's `spec.template`: what its servers' pods have that no other field of the spec is about.

Names and shapes are Kubernetes', so that a part of a pod can be copied; fields that would change what Weightyard itself
decides of a pod don't exist here, and values that would are refused. Which fields may be used at all is the operator's
decision. The CRD's rules repeat the checks that are made in code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from cache_agent.api.kube_objects import (
    LABEL_PATTERN,
    LabelValue,
    NonEmpty,
    ObjectName,
    Quantity,
    ResourceAmount,
    SecretName,
    Strict,
)
from modelimage.errors import InvalidInput
from workspace.field_types import Text, refuse_repeats
from workspace.runtime_spec import EnvVar

# Kubernetes allows a prefix of 253 characters; a whole key of that length is enough.
LONGEST_KEY: Final = 253
# No pattern has a backslash, which CEL would take for its own.
KEY: Final = (
    r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
)
# Our own, those by which others select servers or find their metrics, and Kubernetes' own, some of which loosen a pod's
# security (AppArmor), give it devices (CDI) or a priority (Kueue).
RESERVED_KEY: Final = (
    r"^([^/]*[.])?(weightyard[.]dev|kubernetes[.]io|k8s[.]io|x-k8s[.]io|llm-d[.]ai|prometheus[.]io)/|"
    r"^(pod-template-hash|controller-revision-hash)$"
)
KEY_TAKEN: Final = (
    "labels and annotations of weightyard.dev, kubernetes.io, k8s.io, x-k8s.io, llm-d.ai and prometheus.io, and "
    "hashes of templates, belong to others: choose another name"
)
# By these labels, which operators allow more easily than annotations, meshes and clouds put containers and tokens into
# a pod: a namespace's own labels decide about that.
INJECTING_LABEL: Final = r"^([^/]*[.])?(istio[.]io|linkerd[.]io|azure[.]workload[.]identity)/"
LABEL_TAKEN: Final = (
    "labels of istio.io, linkerd.io and azure.workload.identity put containers and tokens into a pod: "
    "whoever administers the namespace labels it"
)
# Names of containers in our pods, a server's or another. Those that begin with weightyard are kept free for it.
CONTAINER_TAKEN: Final = r"^((server|prewarm|activator|build)$|weightyard)"
VOLUME_TAKEN: Final = r"^((model|scratch|shm)$|adapter-|weightyard)"
# Absolute, without `.` and `..`.
_SEGMENT: Final = r"[.]{0,2}[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*"
_PATH: Final = rf"^(/{_SEGMENT})+$"
_SUB_PATH: Final = rf"^{_SEGMENT}(/{_SEGMENT})*$"
# What the server's container has there itself: the model, its adapters, its scratch space, shared memory.
SERVER_PATHS: Final = r"^/(model|adapters|tmp|dev|proc|sys)(/|$)"
SYSTEM_PATHS: Final = r"^/(dev|proc|sys)(/|$)"
SERVER_PORT_NAME: Final = "http"
SYSTEM_CLASSES: Final = "system-"

# The fields that need no permission of their own: without volumes, mounts have nothing to mount.
_WITH: Final = {"volumeMounts": "volumes"}
# What reaches nothing beyond the Workspace's own namespace.
DEFAULT_FIELDS: Final = frozenset(
    {"imagePullPolicy", "labels", "runtimeClassName", "schedulerName", "topologySpreadConstraints"}
)


class TemplateNotAllowed(InvalidInput):
    """A Workspace uses a field of `spec.template` that the operator doesn't let Workspaces use."""


def _free(pattern: str, why: str) -> AfterValidator:
    """Refuses what others have taken."""
    taken = re.compile(pattern)

    def check(text: str) -> str:
        if taken.search(text):
            raise ValueError(why)
        return text

    return AfterValidator(check)


def _named(taken: str, what: str) -> AfterValidator:
    return _free(taken, f"the pod has a {what} of its own with this name: choose another")


def _check_mounts(mounts: Iterable[VolumeMount], taken: str, why: str) -> None:
    paths = [each.mount_path for each in mounts]
    refuse_repeats("volumeMounts", paths)
    for each in paths:
        if re.match(taken, each):
            raise ValueError(f"volumeMounts has {each}: {why}")


Key = Annotated[
    str,
    StringConstraints(pattern=KEY, min_length=1, max_length=LONGEST_KEY),
    _free(RESERVED_KEY, KEY_TAKEN),
]
Path = Annotated[str, StringConstraints(pattern=_PATH, max_length=512)]
_Part = Annotated[str, StringConstraints(pattern=f"^{LABEL_PATTERN}$", max_length=63)]
VolumeName = Annotated[_Part, _named(VOLUME_TAKEN, "volume")]
ContainerName = Annotated[_Part, _named(CONTAINER_TAKEN, "container")]
# As for a Service (RFC 6335): up to 15 characters, with a letter.
PortName = Annotated[
    str, StringConstraints(pattern=r"^([0-9]-?)*[a-z](-?[a-z0-9])*$", max_length=15)
]
LabelKey = Annotated[Key, _free(INJECTING_LABEL, LABEL_TAKEN)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
# 32 of this size are half of what Kubernetes allows one object.
AnnotationValue = Annotated[str, StringConstraints(max_length=4096)]
Annotations = Annotated[dict[Key, AnnotationValue], Field(max_length=32)]
PriorityClass = Annotated[
    ObjectName,
    _free(f"^{SYSTEM_CLASSES}", "classes that begin with system- are for Kubernetes' own pods"),
]


class SpreadConstraint(Strict):
    """How the Workspace's servers are spread over nodes, zones and so on; which pods count is set already."""

    topology_key: Annotated[str, StringConstraints(pattern=KEY, max_length=LONGEST_KEY)] = Field(
        description="The node label whose values are the places: topology.kubernetes.io/zone."
    )
    max_skew: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="By how many servers two places may differ."
    )
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        default="DoNotSchedule", description="Whether a server waits for a place that fits."
    )
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Places that there must be, with DoNotSchedule."
    )
    node_affinity_policy: Literal["Honor", "Ignore"] | None = Field(
        default=None, description="Whether nodes that aren't selected count; Honor: they don't."
    )
    node_taints_policy: Literal["Honor", "Ignore"] | None = Field(
        default=None, description="Whether nodes with other taints count; Honor: they don't."
    )

    @model_validator(mode="after")
    def _demanded(self) -> Self:
        if self.min_domains is not None and self.when_unsatisfiable != "DoNotSchedule":
            raise ValueError("minDomains goes with whenUnsatisfiable: DoNotSchedule")
        return self


class ConfigMapVolume(Strict):
    """A ConfigMap's keys as files."""

    name: ObjectName = Field(description="The ConfigMap's name.")


class SecretVolume(Strict):
    """A Secret's keys as files."""

    secret_name: SecretName = Field(description="The Secret's name.")


class EmptyDirVolume(Strict):
    """An empty directory that lives as long as the pod."""

    size_limit: Quantity = Field(description="What it may hold before the pod is evicted: 1Gi.")
    medium: Literal["Memory"] | None = Field(
        default=None, description="Memory for a tmpfs; absent, the node's disk."
    )


class ClaimVolume(Strict):
    """A PersistentVolumeClaim, which all servers share."""

    claim_name: ObjectName = Field(description="The PersistentVolumeClaim's name.")
    read_only: bool = Field(default=False, description="Whether nothing may be written to it.")


_KINDS: Final = ("configMap", "secret", "emptyDir", "persistentVolumeClaim")


class Volume(Strict):
    """A volume of the pod: exactly one of `configMap`, `secret`, `emptyDir` and `persistentVolumeClaim`."""

    name: VolumeName = Field(description="The name that volumeMounts refer to.")
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyDirVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = (self.config_map, self.secret, self.empty_dir, self.persistent_volume_claim)
        if sum(each is not None for each in kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS[:-1])} and {_KINDS[-1]}")
        return self


class VolumeMount(Strict):
    """Where a container has a volume of `template.volumes`."""

    name: _Part = Field(description="The volume's name.")
    mount_path: Path = Field(description="An absolute path in the container.")
    sub_path: Annotated[str, StringConstraints(pattern=_SUB_PATH, max_length=512)] | None = Field(
        default=None, description="A path in the volume; absent, the whole volume."
    )
    read_only: bool = Field(default=False, description="Whether nothing may be written to it.")


class ContainerPort(Strict):
    """A port that a sidecar listens on, named for those who look for it."""

    name: PortName = Field(description="The port's name; http is the server's.")
    container_port: Annotated[int, Field(ge=1, le=65535)] = Field(description="The number.")


class SidecarResources(Strict):
    """What a sidecar asks for, beside the server."""

    cpu: ResourceAmount | None = Field(default=None, description="CPU request, such as 100m.")
    memory: Quantity | None = Field(
        default=None, description="Memory request and limit, such as 128Mi."
    )


class Sidecar(Strict):
    """A container beside the server's, with the server's user, without capabilities, on a read-only root."""

    name: ContainerName = Field(description="The container's name.")
    image: NonEmpty = Field(description="The container's image.")
    command: tuple[Text, ...] = Field(
        default=(), strict=False, max_length=64, description="Replaces the image's entrypoint."
    )
    args: tuple[Text, ...] = Field(
        default=(), strict=False, max_length=64, description="Arguments of the entrypoint."
    )
    env: tuple[EnvVar, ...] = Field(
        default=(), strict=False, max_length=32,
        description="Environment variables, as in runtime.env.",
    )  # fmt: skip
    ports: tuple[ContainerPort, ...] = Field(
        default=(), strict=False, max_length=8, description="Ports that it listens on."
    )
    resources: SidecarResources = SidecarResources()
    volume_mounts: tuple[VolumeMount, ...] = Field(
        default=(), strict=False, max_length=16, description="Where it has volumes of template.volumes."
    )  # fmt: skip

    @model_validator(mode="after")
    def _own_places(self) -> Self:
        refuse_repeats("env", [each.name for each in self.env])
        refuse_repeats("ports", [each.name for each in self.ports])
        if any(each.name == SERVER_PORT_NAME for each in self.ports):
            raise ValueError("the port name http is the server's: choose another")
        _check_mounts(self.volume_mounts, SYSTEM_PATHS, "/dev, /proc and /sys are the system's")
        return self


class PodTemplate(Strict):
    """What servers' pods have beside the rest of the spec, as far as the operator allows it."""

    labels: Labels = Field(default_factory=dict, description="More labels of the servers' pods.")
    annotations: Annotations = Field(
        default_factory=dict, description="More annotations of the servers' pods."
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="The RuntimeClass of the pods: nvidia on k3s and RKE2."
    )
    priority_class_name: PriorityClass | None = Field(
        default=None, description="The PriorityClass of the pods."
    )
    scheduler_name: ObjectName | None = Field(
        default=None, description="The scheduler that places the pods."
    )
    service_account_name: ObjectName | None = Field(
        default=None,
        description="A ServiceAccount in place of the Workspace's own; its token isn't mounted.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When nodes pull the images of the server and its sidecars."
    )
    topology_spread_constraints: tuple[SpreadConstraint, ...] = Field(
        default=(), strict=False, max_length=8,
        description="How servers are spread, beside the preference for different nodes.",
    )  # fmt: skip
    volumes: tuple[Volume, ...] = Field(
        default=(), strict=False, max_length=16, description="More volumes of the pods."
    )
    volume_mounts: tuple[VolumeMount, ...] = Field(
        default=(), strict=False, max_length=16, description="Where the server has these volumes."
    )
    sidecars: tuple[Sidecar, ...] = Field(
        default=(), strict=False, max_length=4, description="Containers beside the server's."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_repeats("volumes", [each.name for each in self.volumes])
        refuse_repeats("sidecars", [each.name for each in self.sidecars])
        spread = self.topology_spread_constraints
        refuse_repeats(
            "topologySpreadConstraints",
            [f"{each.topology_key} {each.when_unsatisfiable}" for each in spread],
        )
        refuse_repeats("ports of sidecars", [str(each) for each in self.ports])
        return self

    @model_validator(mode="after")
    def _mounted(self) -> Self:
        _check_mounts(
            self.volume_mounts, SERVER_PATHS, "the server has directories of its own there"
        )
        known = {each.name for each in self.volumes}
        for mounts in (self.volume_mounts, *(each.volume_mounts for each in self.sidecars)):
            for each in mounts:
                if each.name not in known:
                    raise ValueError(f"volumeMounts names {each.name}, which isn't in volumes")
        return self

    @property
    def ports(self) -> list[int]:
        """The numbers of all sidecars' ports, which share the pod's network with the server's."""
        return [port.container_port for each in self.sidecars for port in each.ports]

    @property
    def used(self) -> list[str]:
        """The fields that are given, by the names that documents have."""
        return list(self.model_dump(mode="json", by_alias=True, exclude_defaults=True))


NO_TEMPLATE: Final = PodTemplate()
# By the names that documents have, without those that come with another.
FIELDS: Final = tuple(
    sorted(
        each.alias or name for name, each in PodTemplate.model_fields.items() if each.alias not in _WITH
    )
)  # fmt: skip


def not_allowed(template: PodTemplate, allowed: Collection[str]) -> TemplateNotAllowed | None:
    """Why a template can't be used where only some fields are allowed; None if it can."""
    refused = [each for each in template.used if _WITH.get(each, each) not in allowed]
    if not refused:
        return None
    named = ", ".join(f"spec.template.{each}" for each in refused)
    return TemplateNotAllowed(
        f"the operator doesn't let Workspaces set {named}",
        hint="Remove it, or ask the operator to list it in controller.workspaces.templateFields of the chart.",
    )


def parse_fields(text: str) -> frozenset[str]:
    """The fields that an operator allows, from a list with commas; an empty text allows none. Raises InvalidInput."""
    found = frozenset(filter(None, (each.strip() for each in text.split(","))))
    if unknown := sorted(found.difference(FIELDS)):
        raise InvalidInput(
            f"spec.template has no field {unknown[0]!r} to allow",
            hint=f"Known are {', '.join(FIELDS)}.",
        )
    return found

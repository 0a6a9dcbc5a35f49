"""The Workspace document (`weightyard.dev/v1alpha1`): which model to serve, with what, on what, how many replicas.

The same schema applies to files of `weightyard up`, to rendering, and to the cluster's custom resource. Strict: unknown
fields and values of another type are refused. Only shape and single-document rules belong here; the planner interprets
a spec for a given model and machine.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from cache_agent.api.cached_model import VariantName
from cache_agent.api.kube_objects import (
    Namespace,
    NonEmpty,
    Quantity,
    ResourceAmount,
    SecretName,
    Strict,
)
from modelimage.quantization import Variant
from workspace.field_types import (
    MOST_NODES,
    MOST_REPLICAS,
    Labels,
    Name,
    as_enum,
    refuse_without_effect,
)
from workspace.provisioning_spec import Provisioner, Provisioning
from workspace.rollout_spec import EVEN_WEIGHT, Rollout, Strategy
from workspace.route_spec import Route
from workspace.runtime_spec import DEFAULT_PORT, GROUP_PORT, Engine, Runtime
from workspace.scale_spec import Autoscaler, Scale
from workspace.template_spec import NO_TEMPLATE, PodTemplate
from workspace.tenancy import Tenancy
from workspace.toleration import Toleration

KIND: Final = "Workspace"
AUTO_VARIANT: Final = "auto"  # the most accurate one that fits
# Of a Workspace whose replicas span nodes: the StatefulSet of a replica's workers has its name, a suffix and a number,
# in at most the 52 characters that Kubernetes can label pods with.
MOST_GROUP_NAME: Final = 39


class Vendor(Enum):
    """The accelerator's maker. It determines the Kubernetes resource name."""

    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    NEURON = "neuron"


class Placement(Enum):
    """How the scheduler treats nodes that already hold the model."""

    PREFERRED = "preferred"
    REQUIRED = "required"
    ANY = "any"


class Build(Strict):
    """Builds a Hub or S3 source into an image: target repository, variants, and the Secret with credentials."""

    to: NonEmpty = Field(
        description="A repository without a tag, registry.example/team/model; pullSecret must allow pushing there."
    )
    # Not strict: documents have lists, which strict mode doesn't accept for tuples.
    variants: tuple[Annotated[Variant, as_enum(Variant)], ...] = Field(
        default=(), strict=False, max_length=8, description="Quantized variants to build as well."
    )
    secret: SecretName | None = Field(
        default=None,
        description="A Secret whose keys become the build's environment: HF_TOKEN, AWS_ACCESS_KEY_ID, and so on.",
    )


class Model(Strict):
    """Where the weights come from: exactly one of `image`, `hub` and `s3`."""

    image: NonEmpty | None = Field(
        default=None,
        description="A model image: registry.example/team/model:tag, or oci:DIR:TAG for `weightyard up` alone.",
    )
    hub: NonEmpty | None = Field(
        default=None, description="A Hugging Face model: org/name or org/name@revision."
    )
    s3: NonEmpty | None = Field(default=None, description="A checkpoint in S3: bucket/prefix.")
    build: Build | None = Field(
        default=None, description="Builds hub or s3 into an image, which nodes can cache."
    )
    variant: VariantName = Field(
        default=AUTO_VARIANT,
        description="A variant of the image, such as bf16, int8, int8-w8a16, int4, awq or fp8; auto is the most "
        "accurate one that fits.",
    )
    file: NonEmpty | None = Field(
        default=None,
        description="A GGUF file of the image, by its path, where it has several quantizations; by default Q4_K_M, "
        "else Q8_0.",
    )
    pull_secret: SecretName | None = Field(
        default=None,
        description="A Secret of type kubernetes.io/dockerconfigjson in the namespace.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("image", "hub", "s3") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none"
            raise ValueError(f"give exactly one of image, hub and s3; {found}")
        if self.image is not None and self.build is not None:
            raise ValueError("an image is built already: give build with hub or s3 only")
        return self


class Resources(Strict):
    """The accelerators of one replica. `gpus` 0 means a CPU server; absent, as many as the model needs."""

    gpus: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="GPUs of one replica; by default as many as the model needs."
    )
    nodes: Annotated[int, Field(ge=1, le=MOST_NODES)] = Field(
        default=1,
        description="Nodes of one replica, for a model that fits no single one; they share its GPUs evenly.",
    )
    vendor: Annotated[Vendor, as_enum(Vendor)] = Vendor.NVIDIA
    gpu: NonEmpty | None = Field(
        default=None, description="A GPU that `weightyard help gpus` lists, such as L4 or H100."
    )
    gpu_memory: Quantity | None = Field(
        default=None, description="Memory of one GPU that isn't in the table: 24Gi."
    )
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="The share of one GPU's memory to use, where a GPU is shared."
    )
    mig_profile: NonEmpty | None = Field(default=None, description="A MIG slice, such as 1g.10gb.")
    cpu: ResourceAmount | None = Field(default=None, description="CPU request, such as 4 or 500m.")
    memory: Quantity | None = Field(
        default=None, description="Memory request and limit, such as 16Gi."
    )
    node_selector: Labels = Field(
        default_factory=dict, description="Labels of the nodes that may serve it."
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(), strict=False, max_length=64,
        description="Taints that servers accept, beside the GPU vendor's own.",
    )  # fmt: skip
    provisioning: Provisioning | None = None

    @model_validator(mode="after")
    def _one_sharing(self) -> Self:
        if self.fraction is not None and self.mig_profile is not None:
            raise ValueError("give fraction or migProfile, not both")
        if (self.fraction or self.mig_profile) and self.gpus not in (None, 1):
            raise ValueError("a shared GPU means gpus: 1")
        return self

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.nodes > 1 and (self.fraction or self.mig_profile):
            raise ValueError("a shared GPU is on one node: leave nodes out")
        if self.gpus is not None and self.gpus % self.nodes:
            raise ValueError("gpus are those of all nodes together: make it a multiple of nodes")
        return self

    @property
    def node_gpus(self) -> int | None:
        """GPUs of each node of a replica; None where the planner chooses."""
        return None if self.gpus is None else self.gpus // self.nodes

    @property
    def provisioner(self) -> Provisioner:
        """Who makes nodes for these servers."""
        return self.provisioning.by if self.provisioning else Provisioner.NONE

    @property
    def by_karpenter(self) -> bool:
        return self.provisioner is Provisioner.KARPENTER

    @property
    def makes_nodes(self) -> bool:
        """Whether something is known to make nodes for pods that fit nowhere."""
        return self.provisioner is not Provisioner.NONE

    @property
    def warm_spares(self) -> int:
        """Nodes that are to hold the model beside those that serve it."""
        return self.provisioning.warm_spares if self.provisioning else 0


class Spec(Strict):
    """The desired state. `replicas` and `scale` exclude each other; neither means one replica."""

    model: Model
    runtime: Runtime = Runtime()
    resources: Resources = Resources()
    replicas: Annotated[int, Field(ge=0, le=MOST_REPLICAS)] | None = Field(
        default=None, description="A fixed number of replicas; 0 stops serving."
    )
    scale: Scale | None = None
    placement: Annotated[Placement, as_enum(Placement)] = Placement.PREFERRED
    tenancy: Tenancy = Tenancy()
    rollout: Rollout = Rollout()
    route: Route | None = None
    template: PodTemplate = NO_TEMPLATE

    @model_validator(mode="after")
    def _one_count(self) -> Self:
        if self.replicas is not None and self.scale is not None:
            raise ValueError("give replicas or scale, not both")
        if self.scale is not None and self._is_external:
            raise ValueError(
                "with strategy: external another program scales: give replicas, for the start, or nothing"
            )
        return self

    @model_validator(mode="after")
    def _one_count_to_divide(self) -> Self:
        provisioning = self.resources.provisioning
        capacity = provisioning.capacity if provisioning else None
        scaled = self.scale is not None and self.scale.by is not Autoscaler.BUILTIN
        # The other program sets the replicas of one Deployment, and knows nothing of another beside it.
        if capacity and capacity.on_demand_minimum and (scaled or self._is_external):
            raise ValueError(
                "onDemandMinimum divides the replicas between two Deployments, and with by: hpa, by: keda or strategy: "
                "external another program sets those of one: give replicas, scale by: builtin, or no onDemandMinimum"
            )
        return self

    @model_validator(mode="after")
    def _spread(self) -> Self:
        if self.resources.nodes == 1:
            return self
        provisioning = self.resources.provisioning
        if provisioning and provisioning.capacity and provisioning.capacity.on_demand_minimum:
            raise ValueError(
                "with resources.nodes above 1, capacity.onDemandMinimum isn't possible"
            )
        # The templates of the other engines have no command for a worker.
        if self.runtime.engine is not Engine.VLLM:
            raise ValueError("resources.nodes above 1 is for the engine vllm")
        # A new version beside the one that serves is kept by a Deployment, and a Deployment keeps no groups.
        if self.rollout.strategy is not Strategy.ROLLING:
            raise ValueError(
                "with resources.nodes above 1 servers are replaced by strategy: rolling alone: leave strategy out"
            )
        return self

    @model_validator(mode="after")
    def _attainable(self, info: ValidationInfo) -> Self:
        scaled = self.scale is not None and self.scale.by is not Autoscaler.BUILTIN
        if scaled and self.route is None and self.rollout.highest_weight > EVEN_WEIGHT:
            refuse_without_effect(
                info,
                "with by: hpa or by: keda the old version keeps its servers, so no weight of rollout.steps above "
                f"{EVEN_WEIGHT} is reached: give route, scale by: builtin, or smaller weights",
            )
        return self

    @model_validator(mode="after")
    def _comparable(self, info: ValidationInfo) -> Self:
        engine = self.runtime.engine
        if engine is not Engine.VLLM and self.rollout.compares:
            refuse_without_effect(
                info,
                f"an analysis reads what vLLM counts, and {engine.value} counts otherwise: give rollout.steps of "
                "weights and pauses",
            )
        return self

    @model_validator(mode="after")
    def _free_ports(self) -> Self:
        taken = [self.runtime.port or DEFAULT_PORT]
        # The leader of a group waits for its workers there.
        taken += [GROUP_PORT] if self.resources.nodes > 1 else []
        for port in self.template.ports:
            if port in taken:
                raise ValueError(f"a sidecar's port {port} is the server's: choose another")
        return self

    @property
    def _is_external(self) -> bool:
        return self.rollout.strategy is Strategy.EXTERNAL


class Metadata(Strict):
    """The part of Kubernetes' ObjectMeta that a file may set."""

    name: Name
    namespace: Namespace | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Workspace(Strict):
    """One document. Law: `Workspace.model_validate(w.to_document()) == w`."""

    api_version: Literal["weightyard.dev/v1alpha1"]
    kind: Literal["Workspace"]
    metadata: Metadata
    spec: Spec

    @model_validator(mode="after")
    def _short_name(self) -> Self:
        if self.spec.resources.nodes > 1 and len(self.metadata.name) > MOST_GROUP_NAME:
            raise ValueError(
                f"with resources.nodes above 1 a Workspace's name is at most {MOST_GROUP_NAME} characters"
            )
        return self

    @property
    def name(self) -> str:
        return self.metadata.name

    def to_document(self) -> dict[str, Any]:
        """The equivalent document, without defaults."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            # Without defaults: a field that a later release adds doesn't change the
            # identity of the versions of before.
            **self.model_dump(
                mode="json", by_alias=True, exclude_defaults=True, include={"metadata", "spec"}
            ),
        }

"""The Workspace CustomResourceDefinition: structural schema from the pydantic models, CEL rules and status.

Every object that the API server accepts must parse in the controller. Shapes come from the same models; the checks that
pydantic does in code are repeated here as CEL, and a test compares the two. `python -m workspace.crd` prints it.
"""

from __future__ import annotations

from typing import Any, Final

import yaml
from pydantic import Field

from cache_agent.api import crd_schema
from cache_agent.api.crd_schema import (
    LABEL_KEYS,
    REGISTRY_IMAGE,
    CustomResource,
    Rules,
    at,
    keyed,
    model_schema,
)
from cache_agent.api.kube_objects import GENERATION, Conditions, Count, Reported, ReportedLine
from workspace.rollout_spec import EVEN_WEIGHT, FILLABLE, PLACEHOLDERS
from workspace.rollout_status import RolloutStatus, RouteStatus
from workspace.schema import KIND, MOST_GROUP_NAME, Spec
from workspace.startup import MOST_STARTS, Startup
from workspace.template_rules import PORTS_RULE, TEMPLATE_KEYED, TEMPLATE_RULES

Json = dict[str, Any]

PLURAL: Final = "workspaces"
# Of a status, which has to stay small.
MOST_REASONS: Final = 64
CONDITIONS: Final = ("ModelResolved", "Cached", "Scheduled", "Available", "Routed", "Ready")

# 52: the longest name of a Service that is derived from it, NAME--candidate, is
# then a DNS label of 63 characters.
_NAME_RULE: Final = (
    "self.metadata.name.matches('^[a-z](-?[a-z0-9])*$') && self.metadata.name.size() <= 52",
    "a Workspace's name is at most 52 lower-case letters, digits and single '-', and starts with a letter",
)

# Each level has its own `has`: an absent field is no null to CEL but an error, and a
# rule that errs refuses the object.
_SPREAD: Final = "has({0}resources) && has({0}resources.nodes) && {0}resources.nodes > 1"
_GROUP_NAME_RULE: Final = (
    f"!({_SPREAD.format('self.spec.')}) || self.metadata.name.size() <= {MOST_GROUP_NAME}",
    f"with resources.nodes above 1 a Workspace's name is at most {MOST_GROUP_NAME} characters",
)

# Maps of labels and of resources.
_LABELS: Final = (
    ("resources", "nodeSelector"),
    ("tenancy", "quota"),
    ("tenancy", "limits"),
    ("tenancy", "networkPolicy", "allowFromNamespaces"),
)

RULES: Final[Rules] = {
    (): (
        ("!(has(self.replicas) && has(self.scale))", "give replicas or scale, not both"),
        (
            "!has(self.scale) || !has(self.rollout) || !has(self.rollout.strategy) || "
            "self.rollout.strategy != 'external'",
            "with strategy: external another program scales: give replicas, for the start, or nothing",
        ),
        (
            "!has(self.resources) || !has(self.resources.provisioning) || "
            "!has(self.resources.provisioning.capacity) || "
            "!has(self.resources.provisioning.capacity.onDemandMinimum) || "
            "self.resources.provisioning.capacity.onDemandMinimum == 0 || "
            "(!has(self.scale) || !has(self.scale.by) || self.scale.by == 'builtin') && "
            "(!has(self.rollout) || !has(self.rollout.strategy) || self.rollout.strategy != 'external')",
            "onDemandMinimum divides the replicas between two Deployments: with by: hpa, by: keda or strategy: "
            "external another program sets those of one",
        ),
        (
            "!has(self.runtime) || !has(self.runtime.engine) || self.runtime.engine == 'vllm' || "
            "!has(self.rollout) || !has(self.rollout.strategy) || self.rollout.strategy != 'canary' || "
            "has(self.rollout.steps) && self.rollout.steps.size() > 0 && "
            "!self.rollout.steps.exists(step, has(step.analysis))",
            "an analysis reads what vLLM counts: with another engine give rollout.steps of weights and pauses",
        ),
        (
            "!has(self.scale) || !has(self.scale.by) || self.scale.by == 'builtin' || has(self.route) || "
            "!has(self.rollout) || !has(self.rollout.steps) || "
            f"!self.rollout.steps.exists(step, has(step.weight) && step.weight > {EVEN_WEIGHT})",
            "with by: hpa or by: keda the old version keeps its servers, so no weight of rollout.steps above "
            f"{EVEN_WEIGHT} is reached: give route, scale by: builtin, or smaller weights",
        ),
        (
            f"!({_SPREAD.format('self.')}) || !has(self.runtime) || !has(self.runtime.engine) || "
            "self.runtime.engine == 'vllm'",
            "resources.nodes above 1 is for the engine vllm",
        ),
        (
            f"!({_SPREAD.format('self.')}) || !has(self.rollout) || !has(self.rollout.strategy) || "
            "self.rollout.strategy == 'rolling'",
            "with resources.nodes above 1 servers are replaced by strategy: rolling alone: leave strategy out",
        ),
        (
            f"!({_SPREAD.format('self.')}) || !has(self.resources.provisioning) || "
            "!has(self.resources.provisioning.capacity) || "
            "!has(self.resources.provisioning.capacity.onDemandMinimum) || "
            "self.resources.provisioning.capacity.onDemandMinimum == 0",
            "with resources.nodes above 1, capacity.onDemandMinimum isn't possible",
        ),
        PORTS_RULE,
    ),
    ("model",): (
        (
            "[has(self.image), has(self.hub), has(self.s3)].filter(given, given).size() == 1",
            "give exactly one of image, hub and s3",
        ),
        (
            "!(has(self.image) && has(self.build))",
            "an image is built already: give build with hub or s3 only",
        ),
    ),
    ("runtime",): (
        (
            "!has(self.tracing) || !has(self.engine) || self.engine == 'vllm'",
            "tracing is for the engine vllm",
        ),
    ),
    ("model", "image"): REGISTRY_IMAGE,
    ("runtime", "adapters", "[]", "image"): REGISTRY_IMAGE,
    ("model", "build"): (
        (
            "!has(self.variants) || !self.variants.exists(each, each == 'auto')",
            "variants names what to build; auto is for model.variant",
        ),
    ),
    ("runtime", "env", "[]"): (
        ("has(self.value) != has(self.secret)", "give exactly one of value and secret"),
    ),
    ("resources",): (
        ("!(has(self.fraction) && has(self.migProfile))", "give fraction or migProfile, not both"),
        (
            "!(has(self.fraction) || has(self.migProfile)) || !has(self.gpus) || self.gpus == 1",
            "a shared GPU means gpus: 1",
        ),
        (
            "!(has(self.fraction) || has(self.migProfile)) || !has(self.nodes) || self.nodes == 1",
            "a shared GPU is on one node: leave nodes out",
        ),
        (
            "!has(self.gpus) || !has(self.nodes) || self.gpus % self.nodes == 0",
            "gpus are those of all nodes together: make it a multiple of nodes",
        ),
    ),
    ("resources", "provisioning"): (
        (
            "!has(self.by) || self.by != 'kueue' || has(self.queue)",
            "by: kueue needs queue, the LocalQueue that admits the servers",
        ),
        (
            "!has(self.queue) || has(self.by) && self.by == 'kueue'",
            "queue is for by: kueue: give that, or leave queue out",
        ),
    ),
    ("resources", "provisioning", "capacity"): (
        (
            "!has(self.onDemandMinimum) || self.onDemandMinimum == 0 || !has(self.spot) || self.spot == 'preferred'",
            "onDemandMinimum goes with spot: preferred; with only and never all replicas run on one kind",
        ),
    ),
    **dict.fromkeys(_LABELS, (LABEL_KEYS,)),
    ("rollout", "analysis", "queries", "[]"): (
        ("has(self.atMost) != has(self.atLeast)", "give exactly one of atMost and atLeast"),
        (
            f"self.query.matches('{FILLABLE}')",
            f"unknown placeholder; known are {', '.join(f'{{{{{each}}}}}' for each in PLACEHOLDERS)}",
        ),
    ),
    ("rollout", "steps", "[]"): (
        (
            "[has(self.weight), has(self.pause), has(self.analysis)].filter(given, given).size() == 1",
            "give exactly one of weight, pause and analysis",
        ),
    ),
    ("rollout", "analysis", "probes"): (
        (
            "has(self.configMap) != (has(self.attached) && self.attached)",
            "give exactly one of configMap and attached: true",
        ),
    ),
    ("rollout",): (
        (
            "!has(self.analysis) || has(self.strategy) && !(self.strategy in ['rolling', 'external'])",
            "analysis is for strategy: canary or blueGreen",
        ),
        (
            "!has(self.keepSeconds) || has(self.strategy) && self.strategy == 'blueGreen'",
            "keepSeconds is for strategy: blueGreen",
        ),
        (
            "!has(self.steps) || self.steps.size() == 0 || "
            "has(self.strategy) && !(self.strategy in ['rolling', 'external'])",
            "steps are for strategy: canary or blueGreen",
        ),
        (
            "!has(self.steps) || !has(self.strategy) || self.strategy != 'blueGreen' || "
            "self.steps.all(step, has(step.pause))",
            "steps of blueGreen are pauses: before the requests move, there are none to share or compare",
        ),
        (
            "!has(self.steps) || self.steps.size() == 0 || !has(self.strategy) || self.strategy != 'canary' || "
            "has(self.steps[0].weight)",
            "the first of steps must be a weight: before it no request tells anything",
        ),
        (
            # `isSorted` is of Kubernetes' own library for CEL.
            "!has(self.steps) || "
            "self.steps.filter(step, has(step.weight)).map(step, step.weight).isSorted()",
            "weights of steps never fall: let each be at least the one before",
        ),
    ),
    ("route",): (
        (
            # A rule can't read the Workspace's own namespace, so '' stands for it.
            "self.parentRefs.all(one, self.parentRefs.filter(other, other.name == one.name && "
            "(has(other.namespace) ? other.namespace : '') == (has(one.namespace) ? one.namespace : '') && "
            "(!has(other.sectionName) || !has(one.sectionName) || other.sectionName == one.sectionName)"
            ").size() == 1)",
            "parentRefs has a Gateway twice: give each its own sectionName",
        ),
    ),
    ("scale",): (
        ("!has(self.min) || self.min <= self.max", "min is above max"),
        (
            "!has(self.by) || self.by != 'hpa' || !has(self.min) || self.min > 0",
            "a HorizontalPodAutoscaler can't scale to 0: give min 1, or by: builtin",
        ),
        (
            "!has(self.by) || self.by != 'keda' || has(self.prometheus)",
            "by: keda needs prometheus, the address from which KEDA reads the queue depth",
        ),
    ),
    **TEMPLATE_RULES,
}  # fmt: skip

# Lists keyed by name: the API server refuses duplicates and merges items by key.
_KEYED: Final = (("runtime", "env"), ("runtime", "adapters"), ("rollout", "analysis", "queries"))

# The last number is the priority: `kubectl get` shows columns above 0 only with `-o wide`.
_COLUMNS: Final = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("Variant", "string", ".status.variant", 0),
    ("Replicas", "integer", ".status.readyReplicas", 0),
    ("Cached", "string", ".status.cached", 0),
    ("Image", "string", ".spec.model.image", 1),
    ("Revision", "integer", ".status.revision", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def definition() -> Json:
    """The CustomResourceDefinition."""
    return crd_schema.definition(
        CustomResource(
            kind=KIND,
            plural=PLURAL,
            singular="workspace",
            short_names=("ws",),
            scope="Namespaced",
            description="A model to serve: its source, inference server, hardware and replicas.",
            spec=spec_schema(),
            status=status_schema(),
            columns=_COLUMNS,
            rules=(_NAME_RULE, _GROUP_NAME_RULE),
            subresources={
                # Autoscalers can scale a custom resource only where labelSelectorPath
                # is set: by it they find the pods.
                "scale": {
                    "specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector",
                }
            },
        )
    )


def spec_schema() -> Json:
    """The structural schema of a Workspace's spec, with its CEL rules."""
    schema = model_schema(Spec, RULES)
    for path in _KEYED:
        keyed(schema, path, "name")
    for place, key in TEMPLATE_KEYED:
        keyed(schema, place, key)
    return schema


class WorkspaceStatus(Reported):
    """What the servers of a Workspace do now. The controller writes it."""

    observed_generation: Count = Field(default=0, description=GENERATION)
    conditions: Conditions = ()
    replicas: Count = Field(default=0, description="Servers that exist, of all versions.")
    ready_replicas: Count = Field(default=0, description="Servers that take requests.")
    selector: ReportedLine = Field(
        default="", description="Selects the servers' pods; read by autoscalers."
    )
    cached: ReportedLine = Field(
        default="", description="Nodes that hold the model, of those that should: 2/3."
    )
    image: ReportedLine = Field(default="", description="The model's image by digest.")
    model_key: ReportedLine = Field(
        default="", description="The digest by which stores, labels and leases name the model."
    )
    variant: ReportedLine = Field(
        default="", description="The variant of the image that is served, such as bf16 or int4."
    )
    gpus: Count = Field(default=0, description="GPUs of one replica; 0 for servers on CPUs.")
    context_length: Count = Field(
        default=0, description="Tokens of prompt and answer together that a server takes."
    )
    url: ReportedLine = Field(default="", description="Where requests go, inside the cluster.")
    revision: Count = Field(
        default=0, description="The version's number, as `weightyard rollout history` lists it."
    )
    not_chosen: tuple[ReportedLine, ...] = Field(
        default=(), max_length=MOST_REASONS, description="Why better variants weren't chosen."
    )
    startup: tuple[Startup, ...] = Field(
        default=(),
        max_length=MOST_STARTS,
        description="The last start of each version, the newest version first.",
    )
    rollout: RolloutStatus | None = Field(
        default=None,
        description="Where the rollout of a new version stands, with strategy: canary or blueGreen.",
    )
    route: RouteStatus | None = Field(
        default=None, description="How the HTTPRoute shares requests, with spec.route."
    )


def status_schema() -> Json:
    """The structural schema of a Workspace's status."""
    schema = model_schema(WorkspaceStatus)
    keyed(schema, ("conditions",), "type")
    at(schema, ("conditions", "[]", "type"))["enum"] = list(CONDITIONS)
    return schema


def main() -> None:
    """Prints the definition as YAML."""
    print(to_yaml(), end="")


def to_yaml() -> str:
    """The definition as YAML, as the chart ships it."""
    return yaml.safe_dump(definition(), sort_keys=False, width=120)


if __name__ == "__main__":
    main()

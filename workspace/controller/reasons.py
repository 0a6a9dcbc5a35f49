"""Every reason of a condition or Event of a Workspace or CachedModel, with its meaning. Nothing else is ever written.

Reasons are an interface: alerts and scripts compare them. Where Kubernetes has a word for a fault, that word is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from modelimage.errors import WeightyardError


class Reason(StrEnum):
    """A member is the word that is written; `meaning` is one line for the documentation."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Reason:
        made = str.__new__(cls, word)
        made._value_ = word
        made.meaning = meaning
        return made

    # The model's image
    PINNED = ("Pinned", "The image is resolved to a digest and a variant is chosen.")
    RESOLVING = ("Resolving", "The registry is being asked for the image.")
    BUILDING = ("Building", "A Job builds the image from the Hub or S3.")
    BUILD_FAILED = ("BuildFailed", "The build Job failed; the message has the builder's own error.")
    NOT_BUILT = ("NotBuilt", "The build Job succeeded, but the registry doesn't have its image.")
    DOES_NOT_FIT = ("DoesNotFit", "No variant fits the memory or the kernels of the GPUs or CPUs.")
    UNKNOWN_VARIANT = ("UnknownVariant", "The image has no such variant.")
    INVALID_INPUT = ("InvalidInput", "A value of the spec can't be used.")
    NOT_FOUND = ("NotFound", "An image, tag or Secret doesn't exist.")
    ACCESS_DENIED = ("AccessDenied", "Credentials are missing or don't cover the request.")
    INVALID_IMAGE = ("InvalidImage", "The image isn't one that can be served.")
    INVALID_CHECKPOINT = ("InvalidCheckpoint", "The image's checkpoint can't be read.")
    DIGEST_MISMATCH = ("DigestMismatch", "Bytes differ from their digest.")
    UNREACHABLE = ("Unreachable", "A registry or another server doesn't answer.")
    RATE_LIMITED = ("RateLimited", "A registry answers that there are too many requests.")
    REMOTE_REFUSED = ("RemoteRefused", "A server refused a request.")
    TIMED_OUT = ("TimedOut", "An operation took longer than its limit.")
    BUSY = ("Busy", "Something else has to end first; it is tried again.")
    NO_SPACE = ("NoSpace", "A disk or a cache's budget has no space for the model.")
    NOT_WRITABLE = ("NotWritable", "A directory can't be written.")
    FAILED = ("Failed", "An error that no other reason names; the message has it.")
    INTERNAL_ERROR = ("InternalError", "A bug of the controller; running servers are left alone.")
    # Nodes that hold it
    UNRESOLVED = ("Unresolved", "Nothing can be said before the model is resolved.")
    WARM = ("Warm", "All chosen nodes hold the model.")
    FETCHING = ("Fetching", "Nodes are fetching the model.")
    FETCH_FAILED = ("FetchFailed", "A node can't get the model or the server's image.")
    SPARES_MISSING = (
        "SparesMissing",
        "Fewer nodes hold the model than warmSpares asks for beside the servers'.",
    )
    CAPACITY_BUFFER_MISSING = (
        "CapacityBufferMissing",
        "Nodes for warmSpares are missing, and the cluster has no CapacityBuffer by which they would be made.",
    )
    NO_NODE = ("NoNode", "No ready node is selected, or fits spec.resources.")
    # Places for servers
    NOT_NEEDED = ("NotNeeded", "No replicas are requested.")
    PLACED = ("Placed", "Every replica has a node.")
    WAITING_FOR_CACHE = ("WaitingForCache", "Replicas are created as nodes get the model.")
    FAILED_CREATE = ("FailedCreate", "Pods can't be created: a quota, a limit, a policy.")
    UNSCHEDULABLE = ("Unschedulable", "The scheduler finds no node for a pod.")
    NO_ROOM = (
        "NoRoomForNewVersion",
        "The previous version holds the resources that the new one needs.",
    )
    # Servers
    STARTING = ("Starting", "Servers are starting.")
    SERVING = ("Serving", "At least one server is ready.")
    SCALED_TO_ZERO = ("ScaledToZero", "No server runs; requests start one.")
    STOPPED = ("Stopped", "spec.replicas is 0.")
    FAILED_MOUNT = (
        "FailedMount",
        "A volume of a pod can't be mounted; the message has the words of the agent, or of kubelet.",
    )
    IMAGE_PULL_BACK_OFF = ("ImagePullBackOff", "A container's image can't be pulled.")
    CONTAINER_CONFIG = (
        "CreateContainerConfigError",
        "A container refers to something that doesn't exist, such as a Secret's key.",
    )
    CONTAINER_ERROR = (
        "CreateContainerError",
        "The container runtime can't create or start a container.",
    )
    OOM_KILLED = ("OOMKilled", "The kernel ended a container because memory ran out.")
    CRASH_LOOP = ("CrashLoopBackOff", "A container ends again and again.")
    POD_FAILED = ("PodFailed", "The node ended or refused a pod, such as by an eviction.")
    PROGRESS_DEADLINE = (
        "ProgressDeadlineExceeded",
        "A new version isn't ready within its time limit.",
    )
    ACTIVATOR_NOT_READY = ("ActivatorNotReady", "The activator can't take requests yet.")
    # Everything
    READY = ("Ready", "Everything in the spec runs.")
    ROLLING_OUT = ("RollingOut", "Servers of the previous version still run.")
    COMPARING = (
        "Comparing",
        "A new version gets requests and is compared with the one that serves.",
    )
    PROBING = ("Probing", "A new version is asked probes before it gets requests.")
    INCONCLUSIVE = (
        "Inconclusive",
        "The comparison of two versions, or their answers to probes, say nothing yet.",
    )
    PAUSED = ("Paused", "The rollout of a new version waits for time or for people.")
    PROMOTING = ("Promoting", "A new version that passed all steps takes over.")
    REGRESSED = ("Regressed", "The new version was worse than the one before, and was taken back.")
    NEW_VERSION_FAILED = ("NewVersionFailed", "The new version didn't run, and was taken back.")
    ABORTED = ("Aborted", "The rollout of a new version was aborted by hand.")
    ACCEPTED = ("Accepted", "Every Gateway of spec.route takes the route.")
    ROUTE_PENDING = (
        "RoutePending",
        "A Gateway of spec.route hasn't said whether it takes the route.",
    )
    NOT_ACCEPTED = ("RouteNotAccepted", "A Gateway refuses the route, or a backend of it.")
    GATEWAY_API_MISSING = (
        "GatewayApiMissing",
        "spec.route is set and the cluster lacks the Gateway API, or InferencePools.",
    )
    NAME_CONFLICT = (
        "NameConflict",
        "An object that isn't the Workspace's has a name that it needs.",
    )
    KEDA_MISSING = ("KedaMissing", "spec.scale.by is keda and the cluster has no KEDA.")
    GROUPS_MISSING = (
        "LeaderWorkerSetMissing",
        "spec.resources.nodes is above 1 and the cluster has no LeaderWorkerSets.",
    )
    SCALING_UP = ("ScalingUp", "The scaler adds replicas.")
    SCALING_DOWN = ("ScalingDown", "The scaler takes replicas away.")
    METRIC_UNAVAILABLE = (
        "MetricUnavailable",
        "The autoscaler can't read its metric.",
    )
    QUOTA_NOT_ALLOWED = (
        "QuotaNotAllowed",
        "The operator doesn't let Workspaces set their namespace's quota.",
    )
    TEMPLATE_NOT_ALLOWED = (
        "TemplateNotAllowed",
        "spec.template has a field that the operator doesn't let Workspaces use.",
    )
    WRITE_REFUSED = ("WriteRefused", "The API server refused a write: a quota, a webhook, a right.")
    # CachedModels
    CACHED = ("Cached", "All selected nodes hold the model, verified.")
    WAITING = ("Waiting", "No selected node has started to fetch the model.")
    AT_REST = ("AtRest", "No node is fetching.")
    NO_FAILURE = ("NoFailure", "No node failed.")
    RUNTIME_IMAGE_FAILED = ("RuntimeImageFailed", "A node can't pull spec.runtimeImage.")
    NO_HEARTBEAT = ("NoHeartbeat", "A node's agent is silent: dead or cut off.")


_BY_WORD = {each.value: each for each in Reason}


def reason_of(error: WeightyardError) -> Reason:
    """The reason for an error: that of its class, or of the nearest class that has one."""
    # By the name of the class, not by a table: whoever renames an error renames a reason that alerts compare.
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_WORD:
            return _BY_WORD[kind.__name__]
    return Reason.FAILED


def reported_reason(word: str) -> Reason:
    """The reason that an agent reports. Agents of other versions know other words: those are Failed."""
    return _BY_WORD.get(word, Reason.FAILED)


@dataclass(frozen=True, slots=True)
class News:
    """A change to publish as an Event."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str

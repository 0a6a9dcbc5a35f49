"""A replica on several nodes: what its processes are told of each other, and which of the user's arguments clash.

vLLM's own executor runs one process on each node, without Ray: the GPUs of a node share each layer (tensor parallel),
and the nodes share the layers (pipeline parallel), so that only a stage's output crosses the network. The leader
answers requests; workers are headless. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelimage.architectures import has_stages
from modelimage.errors import InvalidInput
from workspace import arguments
from workspace.arguments import Argument
from workspace.runtime_spec import GROUP_PORT, Engine
from workspace.schema import Spec

LEADER_RANK: Final = "0"
# On a CPU a stage gets its buffers while vLLM warms up, which it leaves out where nothing is compiled: then the first
# request ends it (vLLM 0.32). Tracing without a compiler takes seconds.
TRACED: Final = '{"mode": 2, "backend": "eager"}'
_PIPELINE: Final = "--pipeline-parallel-size"
# Of the processes of one replica; the plan sets them.
_GROUP_FLAGS: Final = frozenset(
    {"--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless", "--distributed-executor-backend"}
)  # fmt: skip
# Each means more copies of the model, which are replicas here.
_COPY_FLAGS: Final = ("--data-parallel-size", "--data-parallel-size-local")


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Where the processes of a replica find each other: the leader's host, and the number of this one.

    A pod doesn't know either when it is planned: then they name variables that Kubernetes fills in.
    """

    leader: str
    worker_rank: str
    port: int = GROUP_PORT


def address(spec: Spec, found: GroupAddress | None) -> GroupAddress | None:
    """Where a replica's processes find each other; None on one node. Raises InvalidInput for several on one machine."""
    nodes = spec.resources.nodes
    if nodes > 1 and found is None:
        raise InvalidInput(
            f"spec.resources.nodes is {nodes}, and this runs on one machine",
            hint="Several nodes are for a cluster: apply the Workspace there, or `weightyard render --to kubernetes`.",
        )
    return found if nodes > 1 else None


def check_arguments(spec: Spec) -> None:
    """Refuses what the user's arguments say of the processes of a replica on several nodes. Raises InvalidInput."""
    nodes, user = spec.resources.nodes, spec.runtime.args
    if nodes == 1:
        return
    given = arguments.given(user)
    clash = sorted(given & _GROUP_FLAGS)
    if clash:
        raise InvalidInput(
            f"spec.runtime.args can't contain {', '.join(clash)}: with spec.resources.nodes Weightyard sets it",
            hint="Say how many nodes a replica has in spec.resources.nodes alone.",
        )
    copies = [flag for flag in _COPY_FLAGS if flag in given]
    if copies:
        raise InvalidInput(
            f"spec.runtime.args can't contain {', '.join(copies)} with spec.resources.nodes above 1",
            hint="More copies of the model are more replicas: set spec.replicas or spec.scale.",
        )
    pipeline = arguments.count_of(user, _PIPELINE)
    if pipeline is not None and pipeline % nodes:
        raise InvalidInput(
            f"{_PIPELINE} is {pipeline}, which {nodes} nodes can't share: each tensor parallel group is on one node",
            hint=f"Leave it out, or make it a multiple of spec.resources.nodes: {nodes}, {2 * nodes} and so on.",
        )


def check_stages(spec: Spec, *, architecture: str, pipeline: int, gpus: int) -> None:
    """Refuses what vLLM doesn't run in pipeline stages. Raises InvalidInput."""
    if pipeline == 1 or spec.runtime.engine is not Engine.VLLM:
        return
    if not has_stages(architecture):
        raise InvalidInput(
            f"vLLM doesn't split {architecture} into pipeline stages",
            hint=f"Take spec.resources.nodes and {_PIPELINE} away: it runs on the GPUs of one node.",
        )
    if gpus:
        return
    if spec.runtime.adapters or "--enforce-eager" in arguments.given(spec.runtime.args):
        raise InvalidInput(
            "on CPUs vLLM's pipeline stages serve neither LoRA adapters nor --enforce-eager",
            hint="Take spec.runtime.adapters and --enforce-eager away, or serve on one CPU node, or on GPUs.",
        )


def group_arguments(
    nodes: int, pipeline: int, address: GroupAddress, *, leads: bool
) -> list[Argument]:
    """The arguments by which vLLM's processes on `nodes` nodes become one server with `pipeline` stages."""
    arguments: list[Argument] = [
        (_PIPELINE, str(pipeline)),
        ("--distributed-executor-backend", "mp"),
        ("--nnodes", str(nodes)),
        ("--node-rank", LEADER_RANK if leads else address.worker_rank),
        ("--master-addr", address.leader),
        ("--master-port", str(address.port)),
    ]
    return arguments if leads else [*arguments, ("--headless",)]

"""The topics of `weightyard help TOPIC`: pages that are installed with the program, made from what owns the facts.

A topic imports what it shows when it is asked for. Hints of errors name topics, not pages that may not be installed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic import BaseModel

_IMAGES: Final = """\
registry.example/team/model:tag      in a registry; without a tag, latest
registry.example/team/model@sha256:  by its digest; oci://REGISTRY/… and docker://REGISTRY/… mean the same
oci:DIR:TAG                          in an OCI layout, a directory on this machine
docker:NAME:TAG                      in a docker engine or podman, for `build --to` and `copy`

In a Workspace file, DIR is relative to the file; on the command line, to the working directory.
Weights that aren't an image yet:
hf://ORG/NAME[@REVISION]   s3://BUCKET/PREFIX   gs://BUCKET/PREFIX   mlflow:models:/NAME/VERSION   a directory"""
_CLUSTER: Final = """\
Install the chart of this version, which has the agent for each node and the controller:
  helm install weightyard charts/weightyard --namespace weightyard --create-namespace
Check it, and nodes that aren't ready:
  weightyard doctor --cluster
Let the controller read a pull secret of a namespace:
  kubectl --namespace NAMESPACE create rolebinding weightyard-pull-secrets \\
    --clusterrole=weightyard-weightyard-controller-secrets --serviceaccount=weightyard:weightyard-controller"""

_NODES: Final = """\
Nodes that Karpenter, the Cluster Autoscaler or Kueue make, in spec of a Workspace:
  resources:
    gpu: L4
    provisioning: {by: karpenter, capacity: {spot: preferred, onDemandMinimum: 1}, warmSpares: 1}
The NodePool for them:
  weightyard render workspace.yaml --to karpenter --node-class EC2NodeClass/gpu
Why a server has no node:
  weightyard explain WORKSPACE -n NAMESPACE
A model that fits no single node: resources.nodes."""
_ROLLOUTS: Final = """\
How one version replaces another, in spec of a Workspace:
  rollout:
    strategy: canary
    steps: [{weight: 10}, {analysis: {seconds: 300}}, {weight: 50}, {pause: {}}]
What it does now, and by hand:
  weightyard rollout status|history|pause|resume|promote|abort|undo WORKSPACE -n NAMESPACE"""

_TEMPLATE: Final = """\
More of servers' pods, here what k3s and RKE2 need, in spec of a Workspace:
  template:
    runtimeClassName: nvidia
    labels: {team: search}
The operator allows each field: controller.workspaces.templateFields of the chart."""


# Each page imports what it shows only then: completion reads the table below at every Tab.
def _workspace() -> str:
    from workspace.starter import starter  # noqa: PLC0415

    document = {
        "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "name"},
        "spec": {"model": {"hub": "org/name"}},
    }  # fmt: skip
    return starter(document, file="workspace.yaml").rstrip("\n")


def _nodes() -> str:
    from workspace.provisioning_spec import Provisioning  # noqa: PLC0415

    return f"{_NODES}\n\n{_described(Provisioning, 'resources.provisioning')}"


def _rollouts() -> str:
    from workspace.rollout_spec import Rollout  # noqa: PLC0415

    return f"{_ROLLOUTS}\n\n{_described(Rollout, 'rollout')}"


def _template() -> str:
    from workspace.template_spec import PodTemplate  # noqa: PLC0415

    return f"{_TEMPLATE}\n\n{_described(PodTemplate, 'template')}"


def _described(kind: type[BaseModel], above: str) -> str:
    """The fields of a part of spec, each with its default and what it means."""
    from workspace.starter import described  # noqa: PLC0415

    lines = []
    for path, text, default in described(kind, above):
        lines.append(path + (f" ({default})" if default else ""))
        lines += textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _gpus() -> str:
    from weightyard.text import format_bytes  # noqa: PLC0415
    from workspace.hardware import GPUS  # noqa: PLC0415

    return "\n".join(
        f"{gpu.name.ljust(16)}{gpu.vendor.value.ljust(8)}{format_bytes(gpu.memory_bytes)}"
        for gpu in GPUS.values()
    )


def _exit_codes() -> str:
    from weightyard.exits import MEANINGS  # noqa: PLC0415

    return "\n".join(
        f"{code:>3}  {meaning.what}" + (f"\n     do: {meaning.to_do}" if meaning.to_do else "")
        for code, meaning in sorted(MEANINGS.items())
    )


def _settings() -> str:
    from weightyard.settings import settings  # noqa: PLC0415

    found = [(each.name, each.field.description or "") for each in settings()]
    width = max(len(name) for name, _ in found)
    return "\n".join(
        [
            "Settings of the agent. In its file a dot is a level, fetch: {streams: 8}; as options, --fetch-streams 8.",
            "",
        ]
        + [f"{name.ljust(width)}  {text}".rstrip() for name, text in found]
    )


def _install() -> str:
    from modelimage.installation import installation  # noqa: PLC0415

    found = installation()
    kind = "a checkout" if found.editable else found.source or "a package index"
    return (
        f"This copy came from {kind} ({found.installer.value}, {found.python}).\n"
        "Extras add what a command needs: builder, agent, controller, sign, evaluate and so on:\n"
        f"  {found.install_command('builder', 'agent')}"
    )


# Name -> summary and page.
TOPICS: Final[Mapping[str, tuple[str, Callable[[], str]]]] = {
    "workspace": (
        "Every common field of a Workspace, with examples; `nodes`, `rollouts` and `template` have theirs.",
        _workspace,
    ),
    "nodes": ("Nodes that come when needed: spot, floors, spares.", _nodes),
    "rollouts": ("How a new version replaces another: steps, analysis, probes.", _rollouts),
    "template": ("Labels, a RuntimeClass, volumes, sidecars: more of servers' pods.", _template),
    "images": ("How images and sources of weights are written.", lambda: _IMAGES),
    "gpus": ("The GPUs that spec.resources.gpu names.", _gpus),
    "settings": ("The agent's settings.", _settings),
    "cluster": ("How to install and check a cluster's part.", lambda: _CLUSTER),
    "install": ("How this copy was installed, and how extras are added.", _install),
    "exit-codes": ("What the exit codes mean.", _exit_codes),
}

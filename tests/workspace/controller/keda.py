"""Kinds of other operators in the tests' API server: what their installation and their removal change there."""

from __future__ import annotations

from tests.workspace.controller.fakeapi import FakeApi
from workspace.controller.cluster.kube_api import RESOURCES

KEDA_DEFINITION = RESOURCES["ScaledObject"].definition


def has_kind(api: FakeApi, kind: str) -> bool:
    """Whether the definition of a kind that a cluster may do without is there."""
    return ("CustomResourceDefinition", "", RESOURCES[kind].definition) in api.objects


def install_kind(api: FakeApi, kind: str) -> None:
    """The part of an operator's installation that API servers see."""
    resource = RESOURCES[kind]
    api.create(
        {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": resource.definition}, "spec": {"group": resource.api.partition("/")[0]},
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        }
    )  # fmt: skip


def remove_kind(api: FakeApi, kind: str) -> None:
    """As the deletion of its definition: its objects go too."""
    for each in api.list(kind):
        api.delete(kind, each["metadata"]["namespace"], each["metadata"]["name"])
    api.delete("CustomResourceDefinition", "", RESOURCES[kind].definition)


def install_keda(api: FakeApi) -> None:
    """KEDA's part."""
    install_kind(api, "ScaledObject")


def remove_keda(api: FakeApi) -> None:
    """KEDA's part."""
    remove_kind(api, "ScaledObject")

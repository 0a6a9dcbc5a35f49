"""KEDA in the tests' API server: what its installation and its removal change there."""

from __future__ import annotations

from tests.workspace.controller.fakeapi import FakeApi
from workspace.controller.kube_api import RESOURCES
from workspace.controller.observed import KEDA_GROUP

KEDA_DEFINITION = RESOURCES["ScaledObject"].definition


def install_keda(api: FakeApi) -> None:
    """The part of KEDA's installation that API servers see."""
    api.create(
        {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": KEDA_DEFINITION}, "spec": {"group": KEDA_GROUP},
            "status": {"conditions": [{"type": "Established", "status": "True"}]},
        }
    )  # fmt: skip


def remove_keda(api: FakeApi) -> None:
    """As the deletion of its definition: its objects go too."""
    for each in api.list("ScaledObject"):
        api.delete("ScaledObject", each["metadata"]["namespace"], each["metadata"]["name"])
    api.delete("CustomResourceDefinition", "", KEDA_DEFINITION)

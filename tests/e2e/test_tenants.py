"""Tenants don't get each other's models, secrets or Workspaces."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster, Refused
from tests.e2e.journey import Settings, document
from tests.e2e.readers import reading
from tests.e2e.release import Release

SECRET = "registry"


@contextlib.contextmanager
def tenant(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace for restricted pods."""
    name = f"{cluster.namespace}-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.kubectl("apply", "-f", "-", given=made)
    try:
        yield cluster.within(name)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait")


@pytest.mark.timeout(0)
def test_a_cached_private_model_is_mounted_for_its_owners_alone(
    release: Release, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    image, login = (pytestconfig.getoption(f"--private-{each}") for each in ("model", "login"))
    if not image:
        pytest.skip("--private-model names no image")
    with tenant(cluster) as owner, tenant(cluster) as other:
        owner.apply(pull_secret(image, login))
        other.apply(pull_secret(image, "someone:guessed"))
        with reading(release, owner, image, secret=SECRET) as reader:
            reader.wait()
            node = reader.node
            for secret in (None, SECRET):
                with reading(release, other, image, secret=secret, node=node) as refused:
                    refused.wait_told("code = PermissionDenied")
            reader.read()


@pytest.mark.timeout(0)
def test_a_tenant_with_edit_has_workspaces_of_its_own_namespace_alone(
    cluster: Cluster, settings: Settings
) -> None:
    with tenant(cluster) as mine, tenant(cluster) as other:
        mine.kubectl(
            "create", "rolebinding", "edit", "-n", mine.namespace, "--clusterrole=edit",
            f"--serviceaccount={mine.namespace}:default",
        )  # fmt: skip
        me = f"--as=system:serviceaccount:{mine.namespace}:default"
        wanted = document(settings, "e2e")
        wanted["spec"]["replicas"] = 0
        create = ("create", me, "-f", "-", "-n")
        for where in (mine, other):
            wanted["metadata"]["namespace"] = where.namespace
            if where is mine:
                mine.kubectl(*create, where.namespace, given=wanted)
                continue
            with pytest.raises(Refused, match="forbidden"):
                mine.kubectl(*create, where.namespace, given=wanted)
        with pytest.raises(Refused, match="forbidden"):
            mine.kubectl("get", me, "workspaces", "-n", other.namespace)
        for kind in ("cachedmodels", "nodecaches"):
            with pytest.raises(Refused, match="forbidden"):
                mine.kubectl("delete", me, kind, "--all")


def pull_secret(image: str, login: str) -> dict[str, object]:
    registry = image.partition("/")[0]
    auth = base64.b64encode(login.encode()).decode()
    config = json.dumps({"auths": {registry: {"auth": auth}}})
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config},
    }  # fmt: skip

"""The Job that builds a Workspace's image from the Hub or S3, in the Workspace's namespace, with its secrets.

The pull secret authenticates to the registry and must allow pushing. `model.build.secret` becomes the environment that
authenticates to the source (HF_TOKEN, AWS_ACCESS_KEY_ID, …). An interrupted build resumes from what the registry
already holds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from workspace.render import names
from workspace.render.kubernetes import SystemSettings, meta
from workspace.render.pod import SCRATCH, container_security, pod_security
from workspace.schema import Workspace
from workspace.sources import build_arguments, image_of

Json = dict[str, Any]

_DOCKER: Final = "/docker"
_RETRIES: Final = 3
_REQUESTS: Final = {"cpu": "1", "memory": "1Gi"}


def build_job(workspace: Workspace, environment: SystemSettings) -> Json:
    """The build Job. Its name contains a hash of its template, since a Job's template is immutable."""
    template = _template(workspace, environment)
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
    # With a Workspace's name of 52 characters this has 63, the limit of the `job-name` label.
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta(workspace, f"{workspace.name}-b-{digest}", names.BUILD),
        "spec": {"backoffLimit": _RETRIES, "template": template},
    }


def _template(workspace: Workspace, environment: SystemSettings) -> Json:
    volumes = [{"name": "scratch", "emptyDir": {}}, *_login_volumes(workspace)]
    return {
        "metadata": {"labels": names.labels(workspace.name, names.BUILD)},
        "spec": {
            "serviceAccountName": workspace.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            "restartPolicy": "Never",
            "containers": [_container(workspace, environment)],
            "volumes": volumes,
        },
    }


def _container(workspace: Workspace, environment: SystemSettings) -> Json:
    build = workspace.spec.model.build
    secret = build.secret if build is not None else None
    login = [{"name": "login", "mountPath": _DOCKER, "readOnly": True}]
    words = build_arguments(workspace, image_of(workspace))
    return {
        "name": names.BUILD,
        "image": environment.builder_image,
        "command": ["weightyard"],
        "args": [*words, "--work-dir", f"{SCRATCH}/work"],
        "env": [
            {"name": "HOME", "value": SCRATCH},
            {"name": "DOCKER_CONFIG", "value": _DOCKER},
        ],
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        "resources": {"requests": dict(_REQUESTS)},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            *(login if _login_volumes(workspace) else []),
        ],
    }


def _login_volumes(workspace: Workspace) -> list[Json]:
    """The pull secret as a docker configuration file."""
    name = workspace.spec.model.pull_secret
    if name is None:
        return []
    item = {"key": ".dockerconfigjson", "path": "config.json"}
    return [{"name": "login", "secret": {"secretName": name, "items": [item]}}]

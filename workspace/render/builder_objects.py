"""The Job that builds a Workspace's image from the Hub or S3, in the Workspace's namespace, with its secrets.

The pull secret authenticates to the registry and must allow pushing. `model.build.secret` becomes the environment that
authenticates to the source (HF_TOKEN, AWS_ACCESS_KEY_ID, …). An interrupted build resumes from what the registry
already holds.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from modelimage.trace_headers import VARIABLE
from workspace.render import names
from workspace.render.containers import container_security, named_values
from workspace.render.pod import SCRATCH, pod_security
from workspace.render.quantities import canonical_all
from workspace.render.routing import SystemSettings, meta
from workspace.schema import Workspace
from workspace.sources import build_arguments, image_of

Json = dict[str, Any]

_DOCKER: Final = "/docker"
_CA: Final = "/ca"
_RETRIES: Final = 3
# Exit codes of `weightyard` that another try can't change: the source, the credentials, the options, the checkpoint.
LASTING_ERRORS: Final = (2, 3, 4, 5, 6, 7, 8, 15, 16, 18, 19)
_DEADLINE: Final = 86_400  # seconds; a build that takes longer hangs
# Seconds that a failed Job and its log stay; then it is built again.
_KEPT: Final = 3600


def build_job(
    workspace: Workspace, environment: SystemSettings, *, uid: str | None = None, trace: str = ""
) -> Json:
    """The build Job. Its name contains a hash of its template, since a Job's template is immutable.

    `trace`: the trace of the version that it builds, which its spans are part of.
    """
    template = _template(workspace, environment, uid, trace)
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
    # With a Workspace's name of 52 characters this has 63, the limit of the `job-name` label.
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta(workspace, f"{workspace.name}-b-{digest}", names.BUILD, uid),
        "spec": {
            "backoffLimit": _RETRIES,
            "activeDeadlineSeconds": _DEADLINE,
            "ttlSecondsAfterFinished": _KEPT,
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": template,
        },
    }


def _failure_rules() -> list[Json]:
    """What a failed pod means: an eviction isn't a failure, and an error that lasts ends the Job at once."""
    evicted = [{"type": "DisruptionTarget", "status": "True"}]
    lasting = {"containerName": names.BUILD, "operator": "In", "values": list(LASTING_ERRORS)}
    return [
        {"action": "Ignore", "onPodConditions": evicted},
        # Empty, because the schemas of older servers require it.
        {"action": "FailJob", "onExitCodes": lasting, "onPodConditions": []},
    ]


def _template(
    workspace: Workspace, environment: SystemSettings, uid: str | None, trace: str
) -> Json:
    authorities = environment.builds.ca
    volumes = [
        {"name": "scratch", "emptyDir": {}}, *_login_volumes(workspace), *_ca_volumes(authorities),
    ]  # fmt: skip
    return {
        "metadata": {
            "labels": names.labels(workspace.name, names.BUILD, uid),
            # The pod's own annotation becomes a file: no ConfigMap has to be copied into the tenant's namespace.
            **({"annotations": {names.CA: authorities}} if authorities else {}),
        },
        "spec": {
            "serviceAccountName": workspace.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            # The only policy with which a Job may have a podFailurePolicy (batch/v1).
            "restartPolicy": "Never",
            "containers": [_container(workspace, environment, trace)],
            "volumes": volumes,
        },
    }


def _container(workspace: Workspace, environment: SystemSettings, trace: str) -> Json:
    build = workspace.spec.model.build
    secret = build.secret if build is not None else None
    settings, traced = environment.builds, dict(environment.tracing.env)
    if traced and trace:
        traced[VARIABLE] = trace
    mounts: list[Json] = [{"name": "scratch", "mountPath": SCRATCH}]
    if _login_volumes(workspace):
        mounts.append({"name": "login", "mountPath": _DOCKER, "readOnly": True})
    if settings.ca:
        mounts.append({"name": "ca", "mountPath": _CA, "readOnly": True})
    words = build_arguments(workspace, image_of(workspace))
    return {
        "name": names.BUILD,
        "image": environment.builder_image,
        "command": ["weightyard"],
        "args": [
            *words, *(f"--plain-http={host}" for host in settings.plain_http),
            *(f"--internal-host={host}" for host in settings.internal_hosts), "--work-dir", f"{SCRATCH}/work",
        ],
        "env": [
            *named_values({**settings.env, **traced}),
            {"name": "HOME", "value": SCRATCH},
            {"name": "DOCKER_CONFIG", "value": _DOCKER},
            *([{"name": "WEIGHTYARD_CA_FILE", "value": f"{_CA}/ca.crt"}] if settings.ca else ()),
        ],
        # The builder's last words, its error and hint, become the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # `env` wins over `envFrom`: a tenant's Secret can't replace what the operator sets above.
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        "resources": {
            "requests": canonical_all(settings.requests),
            **({"limits": canonical_all(settings.limits)} if settings.limits else {}),
        },
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }  # fmt: skip


def _ca_volumes(authorities: str) -> list[Json]:
    if not authorities:
        return []
    field = {"fieldPath": f"metadata.annotations['{names.CA}']"}
    return [{"name": "ca", "downwardAPI": {"items": [{"path": "ca.crt", "fieldRef": field}]}}]


def _login_volumes(workspace: Workspace) -> list[Json]:
    """The pull secret as a docker configuration file."""
    name = workspace.spec.model.pull_secret
    if name is None:
        return []
    # docker and what is like it look for this name; a Secret of this type has the other.
    item = {"key": ".dockerconfigjson", "path": "config.json"}
    return [{"name": "login", "secret": {"secretName": name, "items": [item]}}]

"""MLflow's client of the target `weightyard`: composes what resolves, builds, serves and tags.

Every error is an MlflowException. Each step can be repeated: what was built or written before is found again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mlflow.deployments import PredictionsResponse
from mlflow.deployments.base import BaseDeploymentClient
from mlflow.environment_variables import MLFLOW_DEPLOYMENT_PREDICT_TIMEOUT

from modelimage.errors import InvalidInput, NotFound
from weightyard.mlflow_deployments.backend import Backend
from weightyard.mlflow_deployments.config import (
    Values,
    config_rows,
    merged,
    parse_config,
)
from weightyard.mlflow_deployments.deployment_errors import AlreadyExists, as_mlflow
from weightyard.mlflow_deployments.documents import (
    FLAVOR,
    Deployment,
    Found,
    Json,
    changed_document,
    deployment_of,
    described,
    with_model,
    workspace_document,
)
from weightyard.mlflow_deployments.images import image_name, publish
from weightyard.mlflow_deployments.inputs import inference_requests, predictions
from weightyard.mlflow_deployments.model_uri import DeployedModel
from weightyard.mlflow_deployments.target_uri import FORMS, LOCAL, SCHEME, parse_target
from weightyard.python_api.progress_console import progress_console

_IMAGES: Final = "mlflow"  # beneath the cache's directory
_METADATA: Final = ("name", "namespace", "labels", "annotations")
_log = logging.getLogger(__name__)


class WeightyardDeploymentClient(BaseDeploymentClient):
    """Deploys models as Workspaces in a namespace of a cluster, or on this machine.

    `mlflow deployments help -t weightyard` tells the forms of the target and the keys of a config.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        with as_mlflow():
            self._target = parse_target(target_uri)
        self._console = progress_console(None)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> Json:
        """Build the model's image, serve it, and return once it serves. Raises RESOURCE_ALREADY_EXISTS for a name that
        is taken."""
        with as_mlflow():
            _check(flavor, endpoint)
            values = merged({}, parse_config(config))
            backend = self._backend(values)
            if backend.find(name) is not None:
                raise AlreadyExists(
                    f"there is {name} already", hint="Update it, or take another name."
                )
            model = _resolved(model_uri)
            document = workspace_document(name, backend.namespace, _base(values) or {}, values)
            self._deploy(backend, document, None, model, values)
            return self._described(backend, name)

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> Json:
        """Serve another model, or with other settings; without a model the URI of before, whose alias may have moved.

        Returns once the new version serves. Raises ABORTED when it doesn't, with the reason.
        """
        with as_mlflow():
            _check(flavor, endpoint)
            given = parse_config(config)
            backend = self._backend(given)
            before = _deployed(name, backend.find(name))
            made = _made(before)
            values = merged(parse_config(made.build), given)
            model = _resolved(model_uri or made.model_uri)
            document = changed_document(before.document, _base(given), given)
            self._deploy(backend, document, before, model, values)
            if made.model != model.name:
                self._move(backend, name, made.model, None)
            return self._described(backend, name)

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Stop serving; images and caches stay. A deployment that isn't there is fine."""
        with as_mlflow():
            _check(None, endpoint)
            backend = self._backend(parse_config(config))
            try:
                found = backend.find(name)
            except NotFound:
                return  # its namespace went first
            if found is None:
                return
            made = _made(_deployed(name, found))
            backend.remove(name)
            self._move(backend, name, made.model, None)

    def list_deployments(self, endpoint: str | None = None) -> list[Json]:
        """All deployments of the target. Workspaces that MLflow didn't make are left out."""
        with as_mlflow():
            _check(None, endpoint)
            found = self._backend({}).all()
            return [self._shown(each) for each in found if deployment_of(each.document) is not None]

    def get_deployment(self, name: str, endpoint: str | None = None) -> Json:
        """How a deployment stands, and what it was made from. Raises RESOURCE_DOES_NOT_EXIST."""
        with as_mlflow():
            _check(None, endpoint)
            return self._described(self._backend({}), name)

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Ask for completions (`prompt`), chats (`messages`) or embeddings (`input`).

        `inputs`: a text, a dict, a list of these, or a data frame, a request for each row. The answer has the texts as
        `predictions`, and the server's whole answers as `responses`.
        """
        from weightyard.mlflow_deployments.inference import ask_all  # noqa: PLC0415

        with as_mlflow():
            backend, name = self._asked(deployment_name, endpoint)
            with backend.reach(name) as there:
                requests = inference_requests(inputs, there.model)
                answers = ask_all(there.url, requests, seconds=_seconds())
            return PredictionsResponse(predictions(answers))

    def predict_stream(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> Iterator[Json]:
        """Ask as `predict` does, for one answer, and give its parts as they come."""
        from weightyard.mlflow_deployments.inference import ask_stream  # noqa: PLC0415

        with as_mlflow():
            backend, name = self._asked(deployment_name, endpoint)
            with backend.reach(name) as there:
                requests = inference_requests(inputs, there.model)
                if len(requests) != 1:
                    raise InvalidInput("a stream answers one request", hint="Use predict for many.")
                yield from ask_stream(there.url, requests[0], seconds=_seconds())

    def _deploy(
        self,
        backend: Backend,
        document: Json,
        before: Found | None,
        model: DeployedModel,
        values: Values,
    ) -> None:
        """Build what isn't built yet, write the Workspace, wait until it serves, and tag the version."""
        from weightyard.mlflow_deployments import tracking  # noqa: PLC0415

        name = document["metadata"]["name"]
        directory = self._images() if self._target.is_local else None
        target = image_name(model, values, directory=directory)
        # Before hours of building: what is refused of a Workspace doesn't depend on its image's digest.
        _checked(with_model(document, model, target, values))
        made = None if before is None else _made(before)
        if made is not None and made.is_of(model, values):
            image = made.image
        else:
            published = publish(model, target, values, self._console)
            image = published.image
            tracking.tag_version(model, tracking.image_tags(published))
        final = with_model(document, model, image, values)
        previous = None if before is None else before.document
        backend.apply(final, previous, timeout=values.get("timeout"))
        self._move(backend, name, model.name, model.version)

    def _move(self, backend: Backend, name: str, model: str, version: str | None) -> None:
        from weightyard.mlflow_deployments import tracking  # noqa: PLC0415

        target = replace(self._target, namespace=backend.namespace)
        tag = tracking.deployment_tag(target, name)
        tracking.move_deployment(tag, str(target), name=model, version=version)

    def _backend(self, values: Values) -> Backend:
        # Imported here: each of the two needs modules that the other doesn't.
        if self._target.is_local:
            from weightyard.mlflow_deployments.local import LocalBackend  # noqa: PLC0415

            return LocalBackend(port=values.get("port") or 0)
        if values.get("port"):
            raise InvalidInput(
                "port is for weightyard:/local", hint="In a cluster servers have a Service."
            )
        from weightyard.kubectl import kubectl  # noqa: PLC0415
        from weightyard.mlflow_deployments.cluster import ClusterBackend  # noqa: PLC0415

        cluster = kubectl(self._target.context, None)
        return ClusterBackend(cluster, self._target.namespace, self._console)

    def _asked(self, name: str | None, endpoint: str | None) -> tuple[Backend, str]:
        _check(None, endpoint)
        if not name:
            raise InvalidInput("no deployment is named", hint="Give its name.")
        backend = self._backend({})
        _deployed(name, backend.find(name))
        return backend, name

    def _described(self, backend: Backend, name: str) -> Json:
        return self._shown(_deployed(name, backend.find(name)))

    def _shown(self, found: Found) -> Json:
        return described(found, str(self._target))

    @staticmethod
    def _images() -> Path:
        from weightyard.options import default_root  # noqa: PLC0415

        return default_root(os.environ) / _IMAGES


def run_local(
    name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Deploy a model on this machine, as the target `weightyard:/local` does, which also updates and deletes it."""
    client = WeightyardDeploymentClient(f"{SCHEME}:/{LOCAL}")
    made = client.create_deployment(name, model_uri, flavor, config)
    _log.warning("%s serves at %s", name, made["url"])


def target_help() -> str:
    """The forms of the target, and the keys of a config."""
    lines = [
        "Targets:",
        *_table(FORMS),
        "",
        "Config, as -C KEY=VALUE (an empty value unsets a key):",
    ]
    rows = [(name, f"{meaning} Default: {default}.") for name, default, meaning in config_rows()]
    lines += _table(rows)
    lines += [
        "",
        "Models: models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or runs:/RUN/PATH.",
    ]
    return "\n".join(lines).replace("`", "")


def _table(rows: Any) -> list[str]:
    width = max(len(first) for first, _ in rows)
    return [f"  {first.ljust(width)}  {text}" for first, text in rows]


def _check(flavor: str | None, endpoint: str | None) -> None:
    if endpoint is not None:
        raise InvalidInput("this target has no endpoints", hint="Name the deployment alone.")
    if flavor not in (None, FLAVOR):
        raise InvalidInput(
            f"the flavour {flavor!r:.80} can't be served", hint=f"Leave it out, or give {FLAVOR}."
        )


def _resolved(model_uri: str) -> DeployedModel:
    from weightyard.mlflow_deployments.tracking import resolved  # noqa: PLC0415

    return resolved(model_uri)


def _deployed(name: str, found: Found | None) -> Found:
    if found is None:
        raise NotFound(f"there is no deployment {name}", hint="See `mlflow deployments list`.")
    _made(found)
    return found


def _made(found: Found) -> Deployment:
    made = deployment_of(found.document)
    if made is None:
        name = found.document["metadata"]["name"]
        raise InvalidInput(
            f"{name} wasn't deployed through MLflow", hint="Change it where it was made."
        )
    return made


def _base(values: Values) -> Json | None:
    """The spec of the Workspace file that is given; None without one."""
    file = values.get("workspace")
    if file is None:
        return None
    from weightyard.given_workspace import read_workspace  # noqa: PLC0415

    given = read_workspace(str(Path(file).absolute()), name=None, here=False)
    spec: Json = given.workspace.to_document()["spec"]
    return spec


def _checked(document: Json) -> None:
    """Raises InvalidInput, with a line for each problem."""
    from workspace.document import parse_workspace  # noqa: PLC0415

    # Of what a cluster adds to it, nothing is for us to check.
    metadata = {k: v for k, v in document["metadata"].items() if k in _METADATA}
    known = {k: document[k] for k in ("apiVersion", "kind", "spec")}
    parse_workspace(json.dumps({**known, "metadata": metadata}, indent=1), name="the deployment")


def _seconds() -> float:
    """MLflow's own setting of how long a request may take."""
    return float(MLFLOW_DEPLOYMENT_PREDICT_TIMEOUT.get())  # type: ignore[no-untyped-call]

"""What MLflow knows: which model a URI names now, and the tags of its version. MLflow's own errors pass."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from builder.sources.mlflow import parse_mlflow
from modelimage.source_uris import MLFLOW
from weightyard.mlflow_deployments.images import PublishedModel
from weightyard.mlflow_deployments.model_uri import DeployedModel
from weightyard.mlflow_deployments.target_uri import LOCAL, DeploymentTarget

IMAGE: Final = "weightyard.image"
VARIANTS: Final = "weightyard.variants"
QUALITY: Final = "weightyard.quality."  # and the variant
DEPLOYMENT: Final = "weightyard.deployment."  # see `deployment_tag`
_log = logging.getLogger(__name__)


def resolved(uri: str) -> DeployedModel:
    """The model that a URI names now: an alias may move later. Raises InvalidInput, MlflowException."""
    given = parse_mlflow(f"{MLFLOW}{uri}")
    client = MlflowClient()
    if given.run is not None:
        client.get_run(given.run)
        return DeployedModel(uri, str(given), run=given.run)
    if given.alias is None and given.version is None:
        logged = client.get_logged_model(given.name)
        return DeployedModel(uri, str(given), run=logged.source_run_id or "")
    if given.alias is not None:
        found = client.get_model_version_by_alias(given.name, given.alias)
    else:
        found = client.get_model_version(given.name, str(given.version))
    version = str(found.version)
    source = f"{MLFLOW}models:/{given.name}/{version}"
    return DeployedModel(uri, source, given.name, version, found.run_id or "")


def image_tags(image: PublishedModel) -> dict[str, str]:
    """What a version's tags say of its image. Pure."""
    quality = {f"{QUALITY}{variant}": text for variant, text in image.quality.items()}
    return {IMAGE: image.image, VARIANTS: ",".join(image.variants), **quality}


def deployment_tag(target: DeploymentTarget, name: str) -> str:
    """The name of a deployment's tag: `weightyard.deployment.NAMESPACE.NAME`, or with the context before. Pure."""
    places = (target.context, LOCAL if target.is_local else target.namespace, name)
    # MLflow takes few other characters in names.
    return DEPLOYMENT + re.sub(r"[^\w.-]", "-", ".".join(each for each in places if each))


def tag_version(model: DeployedModel, tags: Mapping[str, str]) -> None:
    """Sets tags of a registered version; of others there is nothing to tag. A registry that refuses is a warning."""
    if not model.version:
        return
    with _tolerated(f"tag version {model.version} of {model.name}"):
        client = MlflowClient()
        for name, value in tags.items():
            client.set_model_version_tag(model.name, model.version, name, value)


def move_deployment(tag: str, target: str, *, name: str, version: str | None) -> None:
    """Tells the versions of a registered model which one a deployment serves; None: none any more."""
    if not name:
        return
    with _tolerated(f"tag the versions of {name}"):
        client = MlflowClient()
        quoted = name.replace("'", "''") if "'" in name else name
        for each in client.search_model_versions(f"name='{quoted}'"):
            number = str(each.version)
            if tag in each.tags and number != version:
                client.delete_model_version_tag(name, number, tag)
        if version:
            client.set_model_version_tag(name, version, tag, target)


@contextmanager
def _tolerated(what: str) -> Iterator[None]:
    """The model serves without its tags: whoever may only read the registry isn't kept from deploying."""
    try:
        yield
    except MlflowException as error:
        _log.warning("can't %s: %s", what, str(error).split("\n", 1)[0][:200])

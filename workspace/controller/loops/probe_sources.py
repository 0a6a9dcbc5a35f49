"""Reads a Workspace's probes file: from a ConfigMap of its namespace, or from what is attached to its model's image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from modelimage import mediatypes
from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidInput, NotFound
from modelimage.reference import parse_image
from modelimage.referrers import list_referrers, read_artifact
from modelimage.repository import ImageReader
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.probes.probe_set import ARTIFACT_TYPE, HINT, MOST_BYTES, ProbeSet, parse_probes
from workspace.rollout_spec import ConfigMapKey
from workspace.schema import Workspace
from workspace.sources import require_registry

Json = dict[str, Any]
T = TypeVar("T")
# The probes of a Workspace whose new version has an image.
ProbeSource = Callable[[Workspace, str], Awaitable[ProbeSet]]


class ProbeImages(Protocol):
    """Opens images as a Workspace may: with its own credentials, in a thread that no namespace can keep for itself."""

    async def read(
        self, workspace: Workspace, image: str, work: Callable[[ImageReader], T]
    ) -> T: ...

    async def run(self, workspace: Workspace, work: Callable[[], T]) -> T: ...


class ProbeSources:
    """A `ProbeSource`. Raises NotFound and InvalidInput, which say what to do, and the readers' errors."""

    def __init__(self, api: KubernetesApi, images: ProbeImages) -> None:
        self._api = api
        self._images = images

    async def __call__(self, workspace: Workspace, image: str) -> ProbeSet:
        asked = workspace.spec.rollout.analysis.probes
        if asked is None:
            raise NotFound("spec.rollout.analysis.probes isn't set")
        if asked.config_map is None:
            return await self._images.read(
                workspace, image, lambda reader: attached_probes(reader, image)
            )
        text, what = await self._text(workspace, asked.config_map)
        # YAML of 64 KiB takes a second: not in the event loop.
        return await self._images.run(workspace, lambda: parse_probes(text, what=what))

    async def _text(self, workspace: Workspace, place: ConfigMapKey) -> tuple[str, str]:
        what = f"the ConfigMap {place.name}"
        found = await self._api.get("ConfigMap", workspace.metadata.namespace, place.name)
        text = (found.get("data") or {}).get(place.key)
        if not isinstance(text, str):
            raise InvalidInput(f"{what} has no key {place.key}", hint=HINT)
        return text, f"{what}, key {place.key},"


def attached_probes(reader: ImageReader, image: str) -> ProbeSet:
    """The newest probes file that is attached to an image. Raises NotFound without one, InvalidInput."""
    subject = reader.resolve(require_registry(parse_image(image)).name)
    found = list_referrers(reader, subject, ARTIFACT_TYPE)
    if not found:
        raise NotFound(
            f"no probes are attached to {image}", hint="Attach some: `weightyard probes attach`."
        )
    newest = max(found, key=_created)
    # By the size in the manifest, before anything is fetched: whoever may push to
    # the image attaches what he likes.
    files = read_artifact(reader, newest, wanted=lambda layer: layer.size <= MOST_BYTES)
    if len(files) != 1:
        raise InvalidInput(
            f"the probes attached to {image} aren't one file of at most {MOST_BYTES >> 10} KiB"
        )
    what = f"the probes attached to {image}"
    try:
        return parse_probes(files[0].data.decode(), what=what)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{what} aren't UTF-8 text") from error


def _created(artifact: Descriptor) -> str:
    # RFC 3339 sorts as text; what states no time counts as the oldest.
    return artifact.annotations.get(mediatypes.ANNOTATION_CREATED, "")

"""Resolves a Workspace's images with credentials of its own namespace only.

A pull secret is tenant input: credential helpers that it names are never run.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from modelimage.access import Access, open_reader
from modelimage.allowed_registries import AllowedRegistries
from modelimage.errors import AccessDenied, InvalidInput, release_locals
from modelimage.reference import ImageReference, parse_image
from modelimage.registry.credentials import DockerConfig
from modelimage.repository import ImageReader
from workspace.controller.cluster.fair_slots import FairSlots
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.images import images_of, resolve_workspace
from workspace.render.release import ResolvedImages
from workspace.schema import Workspace
from workspace.sources import require_registry

Json = dict[str, Any]
T = TypeVar("T")

_DATA_KEY = ".dockerconfigjson"
# Seconds for all of a Workspace's images: manifests, configurations, records.
_PATIENCE = 90.0


class NamespacedResolver:
    """A `Resolver` that reads pull secrets through the API. `access` has the registry settings.

    Its threads are shared fairly: neither a namespace nor a registry gets more than a few of them.
    """

    def __init__(
        self,
        api: KubernetesApi,
        access: Access,
        allowed: AllowedRegistries | None = None,
        slots: FairSlots | None = None,
    ) -> None:
        self._api = api
        self._access = access
        self._allowed = allowed or AllowedRegistries()
        self._slots = slots or FairSlots()

    async def __call__(self, workspace: Workspace) -> ResolvedImages:
        """Pins a Workspace's images. Raises the readers' errors, RegistryNotAllowed, NotFound for a missing secret."""
        names = [f"namespace {workspace.metadata.namespace}"]
        for image in [require_registry(each) for each in images_of(workspace)]:
            self._allowed.require(image.registry)
            names.append(f"registry {image.registry}")
        access = await self._access_of(workspace)

        def resolve() -> ResolvedImages:
            # From here on: a question that waited for others' has lost none of its own time.
            limited = access.within(_PATIENCE)
            try:
                return resolve_workspace(workspace, lambda reference: _open(reference, limited))
            except Exception as error:
                # It is kept until the Workspace asks again, with the document that it refuses.
                release_locals(error)
                raise

        # Readers block: in the event loop, a slow registry would delay renewing the Lease.
        return await self._slots.run(names, resolve)

    async def read(self, workspace: Workspace, image: str, work: Callable[[ImageReader], T]) -> T:
        """Runs `work` with a reader of an image, in a thread. Raises what it raises, and as `__call__`."""
        reference = require_registry(parse_image(image))
        self._allowed.require(reference.registry)
        access = await self._access_of(workspace)
        names = [f"namespace {workspace.metadata.namespace}", f"registry {reference.registry}"]
        return await self._slots.run(
            names, lambda: work(_open(reference, access.within(_PATIENCE)))
        )

    async def run(self, workspace: Workspace, work: Callable[[], T]) -> T:
        """Runs `work` in a thread, of which each namespace has a few."""
        return await self._slots.run([f"namespace {workspace.metadata.namespace}"], work)

    def close(self) -> None:
        """Ends the threads that have nothing to do."""
        self._slots.close()

    async def _access_of(self, workspace: Workspace) -> Access:
        name = workspace.spec.model.pull_secret
        if name is None:
            return self._access
        secret = await self._secret(workspace.metadata.namespace, name)
        try:
            data = base64.b64decode(secret["data"][_DATA_KEY], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"the secret {name} holds no {_DATA_KEY}",
                hint="Make it with: kubectl create secret docker-registry.",
            ) from error
        config = DockerConfig.parse(data, what=f"the secret {name}", run=_no_helpers)
        # Replaced, not merged: a tenant's images must never be read with the controller's
        # credentials.
        return replace(self._access, credentials=config)

    async def _secret(self, namespace: str | None, name: str) -> Json:
        try:
            return await self._api.get("Secret", namespace, name)
        except AccessDenied as error:
            raise AccessDenied(
                f"the controller may not read the pull secret {name} of {namespace}",
                hint="Bind the chart's ClusterRole for pull secrets to the controller's ServiceAccount in this "
                "namespace: `weightyard help cluster` has the command.",
            ) from error


def _open(reference: ImageReference, access: Access) -> ImageReader:
    """Opens an image in a registry. A tenant's layout or engine would be the controller's own files and sockets."""
    return open_reader(require_registry(reference), access)


def _no_helpers(name: str, server: str) -> str:
    raise AccessDenied(
        f"the pull secret names the credential helper {name!r} for {server}",
        hint="Put the credentials themselves into the secret: kubectl create secret docker-registry.",
    )

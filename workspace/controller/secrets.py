"""Resolves a Workspace's images with credentials of its own namespace only.

A pull secret is tenant input: credential helpers that it names are never run.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import replace

from modelimage.access import Access, open_reader
from modelimage.errors import AccessDenied, InvalidInput
from modelimage.registry.credentials import DockerConfig
from workspace.controller.kube_api import KubernetesApi
from workspace.images import resolve_workspace
from workspace.render.release import ResolvedImages
from workspace.schema import Workspace

_DATA_KEY = ".dockerconfigjson"


class NamespacedResolver:
    """A `Resolver` that reads pull secrets through the API. `access` has the registry settings."""

    def __init__(self, api: KubernetesApi, access: Access) -> None:
        self._api = api
        self._access = access

    async def __call__(self, workspace: Workspace) -> ResolvedImages:
        """Pins a Workspace's images. Raises the readers' errors, and NotFound for a missing secret."""
        access = await self._access_of(workspace)
        # Readers block: in the event loop, a slow registry would delay renewing the Lease.
        return await asyncio.to_thread(
            resolve_workspace, workspace, lambda reference: open_reader(reference, access)
        )

    async def _access_of(self, workspace: Workspace) -> Access:
        name = workspace.spec.model.pull_secret
        if name is None:
            return self._access
        secret = await self._api.get("Secret", workspace.metadata.namespace, name)
        try:
            data = base64.b64decode(secret["data"][_DATA_KEY], validate=True)
        except (KeyError, TypeError, binascii.Error) as error:
            raise InvalidInput(
                f"the secret {name} holds no {_DATA_KEY}",
                hint="Make it with: kubectl create secret docker-registry.",
            ) from error
        config = DockerConfig.parse(data, what=f"the secret {name}", run=_no_helpers)
        # Replaced, not merged: a tenant's images must never be read with the controller's
        # credentials.
        return replace(self._access, credentials=config)


def _no_helpers(name: str, server: str) -> str:
    raise AccessDenied(
        f"the pull secret names the credential helper {name!r} for {server}",
        hint="Put the credentials themselves into the secret: kubectl create secret docker-registry.",
    )

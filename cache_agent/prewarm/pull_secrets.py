"""Reads the pull secrets of desired models, from a directory or the agent's own namespace, each for one image only."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from cache_agent.access.callers import caller_of_pull_secret
from cache_agent.api.kube.kube_client import KubeClient
from modelimage.access import Access, open_repository
from modelimage.errors import InvalidInput, NotFound
from modelimage.reference import ImageReference, RegistryReference, parse_image
from modelimage.registry.credentials import (
    BasicCredential,
    ExplicitCredential,
    IdentityToken,
    RegistryToken,
)
from modelimage.repository import ImageReader

_KEY: Final = ".dockerconfigjson"


class Secrets(Protocol):
    """A source of pull secrets."""

    async def read(self, name: str) -> Mapping[str, str]:
        """A secret's decoded values, by key. Raises NotFound, AccessDenied, Unreachable, InvalidInput."""


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Secrets as Kubernetes mounts them: DIR/NAME/.dockerconfigjson. None means that there are no secrets."""

    directory: Path | None

    async def read(self, name: str) -> Mapping[str, str]:
        if self.directory is None:
            raise NotFound(
                f"no pull secret {name}: this agent has no secrets", hint="Set prewarm.secrets."
            )
        path = self.directory / name / _KEY
        try:
            return {_KEY: await asyncio.to_thread(path.read_text)}
        except (OSError, UnicodeDecodeError) as error:
            raise NotFound(f"can't read the pull secret {path}: {error}") from error


@dataclass(frozen=True, slots=True)
class ClusterSecrets:
    """Secrets of one namespace, read from the API server at each use and never cached."""

    api: KubeClient
    namespace: str

    async def read(self, name: str) -> Mapping[str, str]:
        document = await self.api.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        try:
            data = document.get("data") or {}
            return {
                key: base64.b64decode(value, validate=True).decode() for key, value in data.items()
            }
        except ValueError as error:
            raise InvalidInput(f"secret {name} isn't base64 of text") from error


@dataclass(frozen=True, slots=True)
class PullCredentials:
    """Opens images with the credentials of pull secrets. `access`: the settings for reaching registries."""

    access: Access
    secrets: Secrets

    async def reader(self, image: ImageReference, secret: str | None) -> ImageReader | None:
        """See `Credentials.reader`."""
        if secret is None or not isinstance(image, RegistryReference):
            return None
        found = await self.secrets.read(secret)
        caller = caller_of_pull_secret(found, image.registry, image.repository)
        if caller.credential is None:
            raise InvalidInput(
                f"pull secret {secret} has nothing for {image.registry}",
                hint="Add the registry to its .dockerconfigjson.",
            )
        # Bound to the image's registry, so that no other host gets it.
        source = ExplicitCredential(image.registry, caller.credential)
        return open_repository(image, replace(self.access, credentials=source))

    async def authorize(self, image: str, secret: str) -> dict[str, str]:
        """The CRI AuthConfig fields from a pull secret, for one container image. Raises what `Secrets.read` raises."""
        reference = parse_image(image)
        if not isinstance(reference, RegistryReference):
            return {}
        found = await self.secrets.read(secret)
        caller = caller_of_pull_secret(found, reference.registry, reference.repository)
        match caller.credential:
            case BasicCredential(username, password):
                return {"username": username, "password": password}
            case IdentityToken(token):
                return {"identity_token": token}
            case RegistryToken(token):
                return {"registry_token": token}
        return {}

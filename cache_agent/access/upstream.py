"""Opens upstream repositories with a caller's own credentials, and checks by HEAD requests what the caller may read.

Fails fast: the waiting client is a container runtime that can contact the registry itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cache_agent.access.callers import Caller
from cache_agent.access.decide import UpstreamAnswer
from modelimage.access import Access, open_repository
from modelimage.allowed_registries import AllowedRegistries
from modelimage.bounds import parse_count
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound, RateLimited, RemoteRefused, Unreachable
from modelimage.mediatypes import INDEX_TYPES, MANIFEST_TYPES
from modelimage.reference import RegistryReference
from modelimage.registry import answers
from modelimage.registry.client import RegistryRepository
from modelimage.registry.connections import Connections
from modelimage.registry.credentials import Anonymous, Credential, ExplicitCredential
from modelimage.registry.exchange import Request
from modelimage.registry.network_options import Timeouts
from modelimage.registry.retry import RetryPolicy

# Longer ones aren't passed on: clients have limits of their own for a header.
_MAX_CHALLENGE = 4096
# Without it a registry may answer with a converted manifest, or 404 for types that the client doesn't accept.
_ACCEPT = ", ".join(sorted(MANIFEST_TYPES | INDEX_TYPES))

# A quarter of a server's threads: a registry that answers slowly must leave the others.
_PER_HOST = 8


def fail_fast(access: Access, *, per_host: int | None = _PER_HOST) -> Access:
    """The same registries, without retries, with short timeouts and few waiting requests for each."""
    connections = Connections(
        timeouts=Timeouts(connect=3.0, stall=10.0, answer=15.0),
        policy=RetryPolicy(attempts=1),
        per_host=per_host,
    )
    return replace(access, connections=connections)


@dataclass(frozen=True, slots=True)
class UpstreamRegistries:
    """The registries that tenants may name. `access`: how to reach them; its credentials are never used."""

    access: Access
    allowed: AllowedRegistries

    def repository(self, image: RegistryReference, caller: Caller) -> RegistryRepository:
        """The repository, opened with this caller's credentials. Raises RegistryNotAllowed."""
        self.allowed.require(image.registry)
        # The node's own credentials would prove the node's access, not the caller's.
        source = (
            Anonymous()
            if caller.credential is None
            else ExplicitCredential(image.registry, caller.credential)
        )
        return open_repository(image, replace(self.access, credentials=source))

    def manifest_question(
        self, image: RegistryReference
    ) -> Callable[[Credential | None], UpstreamAnswer]:
        """A function that requests whether a credential can read a manifest. Raises RegistryNotAllowed."""
        return self._question(image, f"manifests/{image.name}")

    def blob_question(
        self, image: RegistryReference, digest: Digest
    ) -> Callable[[Credential | None], UpstreamAnswer]:
        """A function that requests whether a credential can read a blob. Raises RegistryNotAllowed."""
        return self._question(image, f"blobs/{digest}")

    def challenge(self, image: RegistryReference, path: str) -> str | None:
        """The registry's WWW-Authenticate header for an anonymous request; None if it is granted, or says nothing.

        Raises RegistryNotAllowed, Unreachable.
        """
        # Container runtimes send credentials only after a challenge, so the mirror has to pass on the registry's.
        self.allowed.require(image.registry)
        sender = self.access.sender(image.registry)
        url = f"{self.access.origin(image)}/v2/{image.repository}/{path}"
        response = sender.send(Request("HEAD", url, {"Accept": _ACCEPT}))
        offered = (response.header("WWW-Authenticate") or "") if response.status == 401 else ""
        response.discard()
        return offered.strip() or None if len(offered) <= _MAX_CHALLENGE else None

    def _question(
        self, image: RegistryReference, path: str
    ) -> Callable[[Credential | None], UpstreamAnswer]:
        self.allowed.require(image.registry)
        return lambda credential: ask(self.repository(image, Caller(credential)), path)


def ask(repository: RegistryRepository, path: str) -> UpstreamAnswer:
    """Send a HEAD request for a path in a repository and map the response to an UpstreamAnswer."""
    url = f"{repository.origin}/v2/{repository.repository}/{path}"
    scopes = frozenset({f"repository:{repository.repository}:pull"})
    try:
        response = repository.sender.send(Request("HEAD", url, {"Accept": _ACCEPT}, scopes=scopes))
        if response.status == 200:
            response.discard()
            return UpstreamAnswer.ALLOWED
        raise answers.refusal(response, url, repository.origin)
    # Not an outage: that would extend lapsed permissions, and any caller can bring a limit about.
    except RateLimited as error:
        if not error.outage:
            raise
        return UpstreamAnswer.UNREACHABLE
    except AccessDenied:
        return UpstreamAnswer.REFUSED
    except NotFound:
        return UpstreamAnswer.ABSENT
    # A broken response says nothing about access: like an outage, it leaves a lapsed permission in force.
    except (Unreachable, RemoteRefused):
        return UpstreamAnswer.UNREACHABLE


def blob_size(repository: RegistryRepository, digest: Digest) -> int:
    """The size of a blob in bytes. Raises NotFound, AccessDenied, Unreachable, RemoteRefused."""
    url = f"{repository.origin}/v2/{repository.repository}/blobs/{digest}"
    scopes = frozenset({f"repository:{repository.repository}:pull"})
    response = repository.sender.send(Request("HEAD", url, scopes=scopes))
    if response.status != 200:
        raise answers.refusal(response, f"blob {digest}", repository.origin)
    length = parse_count(response.header("Content-Length"))
    response.discard()
    if length is None:
        raise RemoteRefused(f"{repository.origin} doesn't report the size of blob {digest}")
    return length

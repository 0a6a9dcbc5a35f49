"""Opens the repository or layout behind a reference: credentials, TLS and the choice of implementation.

Plain HTTP, a private certificate authority and unverified certificates are used only where the user configured them.
The exception is a registry on this machine's loopback, where no one else can listen in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelimage.errors import AccessDenied, InvalidInput
from modelimage.layout import Layout
from modelimage.reference import (
    EngineReference,
    ImageReference,
    LayoutReference,
    RegistryReference,
)
from modelimage.registry import credentials
from modelimage.registry.auth import Authorizing
from modelimage.registry.client import RegistryRepository, RepositoryOptions
from modelimage.registry.connections import Connections
from modelimage.registry.credentials import Anonymous, CredentialSource
from modelimage.registry.destinations import Destinations, check_internal
from modelimage.registry.exchange import Sender, Until, WebOrigin
from modelimage.registry.network_options import TlsOptions, is_loopback
from modelimage.registry.upload_state import UploadStates
from modelimage.repository import ImageReader
from modelimage.user_cache import user_cache


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and connection settings for all registries. Default: anonymous, HTTPS, the system's authorities.

    `plain_http` and `unverified_tls` hold hosts as written in references (`host` or `host:port`); `ca_file` is a PEM
    file of authorities trusted in addition to the system's; `internal_hosts`: see `Destinations.internal`;
    `end`: when everything read through this Access must have arrived, a time of `time.monotonic`.
    Repositories opened with one Access share its connections.
    """

    credentials: CredentialSource = field(default_factory=Anonymous)
    plain_http: frozenset[str] = frozenset()
    unverified_tls: frozenset[str] = frozenset()
    ca_file: Path | None = None
    internal_hosts: frozenset[str] = frozenset()
    end: float | None = None
    uploads: UploadStates = field(default_factory=UploadStates, repr=False)
    connections: Connections = field(default_factory=Connections, compare=False, repr=False)

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        *,
        plain_http: Iterable[str] = (),
        ca_file: Path | None = None,
        internal_hosts: Iterable[str] = (),
    ) -> Access:
        """Use the credentials of docker and podman, and remember unfinished uploads in the user's cache directory.

        Raises InvalidInput for a broken config file.
        """
        return cls(
            credentials.from_environment(environment, Path(environment.get("HOME", "/"))),
            frozenset(plain_http),
            ca_file=ca_file,
            internal_hosts=_internal(internal_hosts),
            uploads=UploadStates(user_cache(environment) / "uploads"),
        )

    def is_anonymous(self, reference: RegistryReference) -> bool:
        """Whether a repository is read without credentials. A failing credential helper counts as not anonymous."""
        try:
            return self.credentials.find(reference.registry, reference.repository) is None
        except AccessDenied:
            # The helper may hold credentials that it can't return now. Access must not be widened on a guess.
            return False

    def sender(self, registry: str) -> Sender:
        """The Sender, without authorization, for a host as written in references or for a Hub's."""
        tls = TlsOptions(self.ca_file, verify=registry not in self.unverified_tls)
        sender = self.connections.sender(tls, self.destinations)
        return sender if self.end is None else Until(sender, self.end)

    def within(self, seconds: float) -> Access:
        """The same registries for one question, which all of its requests together must answer in this time."""
        return replace(self, end=time.monotonic() + seconds)

    @property
    def destinations(self) -> Destinations:
        """Where registries and Hubs may direct requests to."""
        # Hosts without TLS are the operator's choice too.
        return Destinations(self.internal_hosts | self.plain_http)

    def origin(self, reference: RegistryReference) -> WebOrigin:
        """The base URL of a reference's registry API: HTTP if configured or on loopback, else HTTPS.

        On loopback, a CA file or an `unverified_tls` entry means that the registry uses TLS.
        """
        encrypted = WebOrigin.parse(f"https://{reference.api_host}")
        wants_tls = self.ca_file is not None or reference.registry in self.unverified_tls
        plain = is_loopback(encrypted.host) and not wants_tls
        if plain or reference.registry in self.plain_http:
            return WebOrigin.parse(f"http://{reference.api_host}")
        return encrypted


def _internal(hosts: Iterable[str]) -> frozenset[str]:
    try:
        return check_internal(hosts)
    except ValueError as error:
        raise InvalidInput(
            f"--internal-host: {error}",
            hint="Write HOST, HOST:PORT or a network such as 10.1.0.0/16.",
        ) from error


def open_reader(reference: ImageReference, access: Access) -> ImageReader:
    """Return a reader for the repository or layout behind a reference. Connects on its first call, not here."""
    return open_image_repository(reference, access)


def open_repository(
    reference: RegistryReference, access: Access, *, mount_from: Sequence[str] = ()
) -> RegistryRepository:
    """Open a registry repository, including its operations beyond ImageReader and ImageWriter.

    `mount_from` names repositories of the same registry whose blobs are mounted instead of uploaded.
    """
    origin = access.origin(reference)
    # Authorization is outermost: a 401 that follows retries and redirects still renews the token.
    sender = Authorizing(
        access.sender(reference.registry),
        origin,
        # Looked up for each token request, not once: credential helpers may return short-lived credentials.
        lambda: access.credentials.find(reference.registry, reference.repository),
    )
    # Backoff and connections are the Access's: all repositories of a command share one host's limits.
    options = RepositoryOptions(access.connections.backoff, access.uploads, mount_from)
    return RegistryRepository(sender, origin, reference.repository, options)


ImageRepository = Layout | RegistryRepository


def open_image_repository(
    reference: ImageReference, access: Access, *, mount_from: Sequence[str] = ()
) -> ImageRepository:
    """Open a reference as a layout or repository, with the operations both have beyond the two interfaces."""
    match reference:
        case LayoutReference():
            return Layout(reference.path)
        case RegistryReference():
            return open_repository(reference, access, mount_from=mount_from)
        case EngineReference():
            raise InvalidInput(
                f"{reference} is in a docker engine, which can't be opened as a registry",
                hint="Use a registry reference or oci:DIR.",
            )

"""How to reach the place that a reference names, and the one spot that chooses its implementation.

Plain HTTP, a private certificate authority and unchecked certificates are used only where they were asked for;
a registry on this machine's loopback is the exception, since nobody listens in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from modelimage.registry.exchange import Origin
from modelimage.registry.memory import DirectoryMemory, NoMemory, UploadMemory
from modelimage.registry.transport import TlsOptions, is_loopback
from modelimage.repository import ImageReader, ImageWriter


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and connection choices for any registry. The default: anonymous, HTTPS, public authorities.

    `plain_http` and `unverified_tls` hold hosts as references write them (`host` or `host:port`); `ca_file` is a PEM
    file of authorities that count beside the system's. Repositories opened with one Access share its connections.
    """

    credentials: CredentialSource = field(default_factory=Anonymous)
    plain_http: frozenset[str] = frozenset()
    unverified_tls: frozenset[str] = frozenset()
    ca_file: Path | None = None
    uploads: UploadMemory = field(default_factory=NoMemory, repr=False)
    connections: Connections = field(default_factory=Connections, compare=False, repr=False)

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        *,
        plain_http: Iterable[str] = (),
        ca_file: Path | None = None,
    ) -> Access:
        """With the credentials that docker and podman would use, and half-sent uploads noted in the user's cache.

        Raises InvalidInput for a broken config file.
        """
        home = Path(environment.get("HOME", "/"))
        cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
        return cls(
            credentials.from_environment(environment, home),
            frozenset(plain_http),
            ca_file=ca_file,
            uploads=DirectoryMemory(cache / "weightyard" / "uploads"),
        )

    def is_anonymous(self, reference: RegistryReference) -> bool:
        """Whether a repository is read without credentials. A helper that fails is no proof of that."""
        try:
            return self.credentials.find(reference.registry, reference.repository) is None
        except AccessDenied:
            return False

    def origin(self, reference: RegistryReference) -> Origin:
        """Where the API of a reference's registry is: HTTP where asked for, and on loopback.

        On loopback a CA file, or the wish not to check certificates, tells that the registry speaks TLS.
        """
        encrypted = Origin.parse(f"https://{reference.api_host}")
        asked_for_tls = self.ca_file is not None or reference.registry in self.unverified_tls
        plain = is_loopback(encrypted.host) and not asked_for_tls
        if plain or reference.registry in self.plain_http:
            return Origin.parse(f"http://{reference.api_host}")
        return encrypted


def open_reader(reference: ImageReference, access: Access) -> ImageReader:
    """The reader of the repository or layout that a reference names. Connects at its first call, not here."""
    return open_place(reference, access)


def open_writer(reference: ImageReference, access: Access) -> ImageWriter:
    """The writer of the repository or layout that a reference names."""
    return open_place(reference, access)


def open_repository(
    reference: RegistryReference, access: Access, *, mount_from: Sequence[str] = ()
) -> RegistryRepository:
    """A registry's repository, with all that it can do beyond the interfaces.

    `mount_from` names repositories of the same registry whose blobs are taken over instead of sent.
    """
    origin = access.origin(reference)
    tls = TlsOptions(access.ca_file, verify=reference.registry not in access.unverified_tls)
    sender = Authorizing(
        access.connections.sender(tls),
        origin,
        lambda: access.credentials.find(reference.registry, reference.repository),
    )
    options = RepositoryOptions(access.connections.backoff, access.uploads, mount_from)
    return RegistryRepository(sender, origin, reference.repository, options)


Place = Layout | RegistryRepository


def open_place(
    reference: ImageReference, access: Access, *, mount_from: Sequence[str] = ()
) -> Place:
    """What a reference names, with all that layouts and registries have in common beyond the interfaces."""
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

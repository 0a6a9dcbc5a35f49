"""Clients of Google Cloud Storage, and their errors mapped to ours (needs the extra `gs`).

Credentials are Application Default Credentials: on GKE those of the pod's service account (workload identity), without
a secret; elsewhere GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`. Without any, requests are
anonymous, which is enough for public buckets. Importing this module takes half a second: import it on first use.
"""

from __future__ import annotations

# First: a missing package is then reported as one that only the extra `gs` brings.
import google_crc32c

# isort: split
import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import google.auth
import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter

from builder.sources.object_errors import refusal
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    Unreachable,
    WeightyardError,
    first_line,
)

_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_only"
# The variables of Google's libraries.
EMULATOR_VARIABLE: Final = "STORAGE_EMULATOR_HOST"
CREDENTIALS_VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_NAME: Final = "Google Cloud Storage"
_ENDPOINT: Final = "https://storage.googleapis.com"
_HINT: Final = (
    "On GKE, bind the pod's service account to one that may read the bucket (workload identity). Elsewhere run "
    "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS."
)
_NETWORK: Final = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    auth.TransportError,
    api.RetryError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class GoogleStorageSettings:
    """How to reach the service, for reading. `timeout` of one request and `retry`, of all, in seconds.

    `endpoint` and `credentials_file` as in the environment; requests to an `endpoint` of its own are anonymous.
    """

    endpoint: str | None = None
    credentials_file: str | None = None
    timeout: float = 60.0
    retry: float = 120.0
    connections: int = 32

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> GoogleStorageSettings:
        """The settings that an environment states."""
        return cls(
            environment.get(EMULATOR_VARIABLE) or None,
            environment.get(CREDENTIALS_VARIABLE) or None,
        )


class GoogleStorage:
    """One client and how its requests are sent. Safe for threads."""

    def __init__(self, settings: GoogleStorageSettings) -> None:
        """Finds credentials; raises AccessDenied for ones that can't be used, InvalidInput for a bad endpoint."""
        address = settings.endpoint or _ENDPOINT
        # As Google's libraries: an address without a scheme is one without TLS.
        self.endpoint = address if "://" in address else f"http://{address}"
        with mapped(self.endpoint):
            credentials = _credentials(settings)
            # Anonymous credentials can't be refreshed: trying to would hide that the service answered 401.
            refreshed = () if isinstance(credentials, AnonymousCredentials) else (401,)
            session: Any = AuthorizedSession(credentials, refresh_status_codes=refreshed)  # type: ignore[no-untyped-call]
            self._session = session
            # More connections than the 10 that requests keeps by default: it would
            # close the others after each use.
            adapter = HTTPAdapter(pool_maxsize=settings.connections)
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            self.client = storage.Client(
                # Only calls that list or create buckets name a project.
                project="none",
                credentials=credentials,
                _http=session,
                client_options={"api_endpoint": self.endpoint} if settings.endpoint else None,
            )
        # Arguments of each request.
        self.sending: Mapping[str, Any] = {
            "timeout": settings.timeout,
            "retry": DEFAULT_RETRY.with_timeout(settings.retry) if settings.retry else None,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes its connections."""
        self._session.close()

    def blob(self, bucket: str, key: str, generation: int | None = None) -> Any:
        """An object, by its generation if one is given. Makes no request."""
        return self.client.bucket(bucket).blob(key, generation=generation)


def _credentials(settings: GoogleStorageSettings) -> Any:
    if settings.endpoint:
        return AnonymousCredentials()  # type: ignore[no-untyped-call]
    try:
        return google.auth.default(scopes=[_SCOPE])[0]
    except auth.DefaultCredentialsError:
        # Named credentials that can't be used are an error; only without any is the bucket tried as a public one.
        if settings.credentials_file:
            raise
        return AnonymousCredentials()  # type: ignore[no-untyped-call]


class Crc32c:
    """A running CRC32C, compared with `expected` as Google's API writes it: base64 of four bytes, big-endian."""

    def __init__(self, expected: str) -> None:
        self._expected = expected
        self._running: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    def update(self, data: bytes) -> None:
        """Add bytes."""
        self._running.update(data)

    def matches(self) -> bool:
        """Whether the bytes so far have the expected checksum."""
        return base64.b64encode(self._running.digest()).decode() == self._expected


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Map the exceptions of Google's libraries during a request for `what`; ours pass unchanged."""
    try:
        yield
    except api.GoogleAPICallError as error:
        raise _refusal(what, int(error.code or 500), error) from error
    except InvalidResponse as error:
        raise _refusal(what, int(error.response.status_code), error) from error
    except DataCorruption as error:
        raise Unreachable(
            f"{what} arrived damaged: {first_line(error)}", hint="Try again."
        ) from error
    except _NETWORK as error:
        raise Unreachable(
            f"{_NAME} can't be reached for {what}: {first_line(error)}",
            hint=f"Check the network, proxies and {EMULATOR_VARIABLE}.",
        ) from error
    except auth.GoogleAuthError as error:
        raise AccessDenied(f"no credentials for {what}: {first_line(error)}", hint=_HINT) from error
    except ValueError as error:
        raise InvalidInput(
            f"{_NAME} can't be used for {what}: {first_line(error)}",
            hint=f"Check the address and {EMULATOR_VARIABLE}.",
        ) from error


def _refusal(what: str, status: int, error: Exception) -> WeightyardError:
    answer = f"{status}: {first_line(error)}"
    return refusal(_NAME, what, status, answer=answer, credentials_hint=_HINT)

"""Maps boto3's errors to ours, for sources in S3. The agent's shared store maps them by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore import exceptions as boto

from builder.sources.object_errors import RATE_LIMITED, refusal
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    RemoteRefused,
    Unreachable,
    WeightyardError,
    first_line,
)

_CREDENTIALS_HINT: Final = "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_SLOW: Final = frozenset({"SlowDown", "Throttling", "RequestLimitExceeded", "TooManyRequests"})
_NETWORK: Final = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
)
_CREDENTIALS: Final = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)
_SETTINGS: Final = (
    boto.ParamValidationError,
    boto.NoRegionError,
    boto.InvalidRegionError,
    boto.InvalidEndpointConfigurationError,
    boto.ConfigParseError,
    boto.ConfigNotFound,
    # A malformed endpoint URL.
    ValueError,
)


@contextmanager
def mapped(what: str) -> Iterator[None]:
    """Map boto3's exceptions during a request for `what`."""
    try:
        yield
    except boto.ClientError as error:
        raise _answer_error(what, error) from error
    except _CREDENTIALS as error:
        raise AccessDenied(f"no credentials for {what}: {error}", hint=_CREDENTIALS_HINT) from error
    except _NETWORK as error:
        raise Unreachable(
            f"S3 can't be reached for {what}: {first_line(error)}",
            hint="Check the network and AWS_ENDPOINT_URL.",
        ) from error
    except _SETTINGS as error:
        raise InvalidInput(
            f"S3 can't be used for {what}: {first_line(error)}",
            hint="Check the address, AWS_REGION and AWS_ENDPOINT_URL.",
        ) from error
    # Last: the base class of those above.
    except boto.BotoCoreError as error:
        raise RemoteRefused(f"S3 failed for {what}: {first_line(error)}") from error


def _answer_error(what: str, error: boto.ClientError) -> WeightyardError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # S3 answers 503 SlowDown, or 400 with one of the other codes, where others answer 429.
    known = RATE_LIMITED if code in _SLOW else status
    return refusal(
        "S3",
        what,
        known,
        answer=f"{status} {code}: {first_line(error)}",
        credentials_hint=_CREDENTIALS_HINT,
    )

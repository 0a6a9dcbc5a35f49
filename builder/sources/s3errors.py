"""Maps boto3's errors to ours: one table, used by everything that accesses S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore import exceptions as boto

from modelimage.errors import (
    AccessDenied,
    InvalidCheckpoint,
    InvalidInput,
    NotFound,
    RateLimited,
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
            f"S3 can't be asked for {what}: {first_line(error)}",
            hint="Check the address, AWS_REGION and AWS_ENDPOINT_URL.",
        ) from error
    except boto.BotoCoreError as error:
        raise RemoteRefused(f"S3 failed for {what}: {first_line(error)}") from error


def _answer_error(what: str, error: boto.ClientError) -> WeightyardError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if status == 404:
        return NotFound(
            f"{what}: not in S3 ({code})", hint="Check the bucket, the prefix and the region."
        )
    if status in (401, 403):
        return AccessDenied(f"S3 refuses {what} ({code})", hint=_CREDENTIALS_HINT)
    # 412: the pinned ETag no longer matches; 416: the object became shorter.
    if status in (412, 416):
        return InvalidCheckpoint(
            f"{what} changed while it was read", hint="Build again when nothing writes there."
        )
    if status == 429 or code in _SLOW:
        return RateLimited(
            f"S3 limits the request rate for {what} ({code})", hint="Try again later."
        )
    if status >= 500:
        return Unreachable(f"S3 failed at {what} ({status} {code})", hint="Try again later.")
    return RemoteRefused(f"S3 answered {status} {code} for {what}: {first_line(error)}")

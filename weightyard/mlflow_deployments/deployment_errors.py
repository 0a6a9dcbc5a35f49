"""Maps our errors to MlflowException: one table from error classes to MLflow's codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

from modelimage import errors
from modelimage.errors import WeightyardError
from weightyard.extras import MissingExtra, missing_extra


class AlreadyExists(errors.InvalidInput):
    """A deployment, or something else, has the name."""


class NotServing(errors.EngineFailed):
    """The deployment doesn't serve, and won't without a change: the message has the Workspace's own words."""


# The nearest listed ancestor of an error's class counts.
ERROR_CODES: Final[dict[type[WeightyardError], int]] = {
    AlreadyExists: codes.RESOURCE_ALREADY_EXISTS,
    NotServing: codes.ABORTED,
    MissingExtra: codes.INVALID_STATE,
    errors.InvalidInput: codes.INVALID_PARAMETER_VALUE,
    errors.NotFound: codes.RESOURCE_DOES_NOT_EXIST,
    errors.AccessDenied: codes.PERMISSION_DENIED,
    errors.InvalidCheckpoint: codes.BAD_REQUEST,
    errors.InvalidImage: codes.BAD_REQUEST,
    errors.DigestMismatch: codes.DATA_LOSS,
    errors.RateLimited: codes.REQUEST_LIMIT_EXCEEDED,
    errors.Unreachable: codes.TEMPORARILY_UNAVAILABLE,
    errors.RemoteRefused: codes.BAD_REQUEST,
    errors.NotWritable: codes.INVALID_STATE,
    errors.NoSpace: codes.RESOURCE_EXHAUSTED,
    errors.Busy: codes.RESOURCE_CONFLICT,
    errors.InUse: codes.RESOURCE_CONFLICT,
    errors.EngineFailed: codes.INTERNAL_ERROR,
    errors.TimedOut: codes.DEADLINE_EXCEEDED,
    errors.GateFailed: codes.ABORTED,
}


def error_code(error: WeightyardError) -> int:
    """MLflow's code for an error, also for one that another process raised, of which the kind is known alone."""
    told = getattr(errors, error.kind, None)
    kind = told if isinstance(told, type) and told in ERROR_CODES else type(error)
    return next(
        (ERROR_CODES[each] for each in kind.__mro__ if each in ERROR_CODES), codes.INTERNAL_ERROR
    )


@contextmanager
def as_mlflow() -> Iterator[None]:
    """Raises our errors as MlflowException, with message, hint and code. MLflow's own pass."""
    try:
        yield
    except WeightyardError as error:
        raise _exception(error) from error
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        raise _exception(missing) from error


def _exception(error: WeightyardError) -> MlflowException:
    text = error.message if error.hint is None else f"{error.message.rstrip('.')}. {error.hint}"
    return MlflowException(text, error_code=error_code(error))

"""Creates a ModelSource from a user's reference: the only module that lists the kinds of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.sources.interface import ModelSource
from builder.sources.local import LOCAL_URI, LocalSource
from modelimage.errors import InvalidInput
from modelimage.hub import endpoint, parse_hub
from modelimage.source_uris import GS, HUB, MLFLOW, S3, hub_uri
from modelimage.user_cache import user_cache


@dataclass(frozen=True, slots=True)
class SourceScheme:
    """One kind of remote source: how its references begin, their form for people, and what opens one.

    `is_bucket`: it names a bucket, in which MLflow may keep its artifacts too.
    """

    prefix: str
    form: str
    open: Callable[[str, Mapping[str, str]], ModelSource]
    is_bucket: bool = False


def open_source(
    text: str,
    environment: Mapping[str, str],
    *,
    uri: str | None = None,
    revision: str | None = None,
) -> ModelSource:
    """Open a reference in one of `SCHEMES`, or a directory.

    Raises InvalidInput. Reads nothing and makes no connection yet. `uri` and `revision` are labels for a directory,
    which has none of its own.
    """
    scheme = next((each for each in SCHEMES if text.startswith(each.prefix)), None)
    if scheme is None:
        # Not tried as a directory, which would be reported as missing.
        if "://" in text:
            meant = hub_uri(text[:200]) or source_forms("or")
            raise InvalidInput(f"unknown kind of source: {text[:200]!r}", hint=f"Give {meant}.")
        return LocalSource(Path(text), uri=uri or LOCAL_URI, revision=revision or "")
    if uri or revision:
        raise InvalidInput(
            "--source-uri and --revision label a local directory",
            hint="Choose a Hub revision by hf://ORG/NAME@REVISION.",
        )
    return scheme.open(text, environment)


def source_forms(conjunction: str) -> str:
    """All forms of a source, for messages and help."""
    *first, last = ("a checkpoint directory", *(each.form for each in SCHEMES))
    return f"{', '.join(first)} {conjunction} {last}"


# Each opener imports its library only when it is called, because each import takes half a second or more.


def _open_hub(text: str, environment: Mapping[str, str]) -> ModelSource:
    from builder.sources.hub import HubModelSource  # noqa: PLC0415

    return HubModelSource(parse_hub(text), endpoint=endpoint(environment))


def _open_s3(text: str, environment: Mapping[str, str]) -> ModelSource:
    from builder.sources.s3 import parse_s3, s3_source  # noqa: PLC0415

    return s3_source(parse_s3(text), _work(environment) / "s3")


def _open_gs(text: str, environment: Mapping[str, str]) -> ModelSource:
    from builder.sources.google_storage import GoogleStorageSettings  # noqa: PLC0415
    from builder.sources.gs import gs_source, parse_gs  # noqa: PLC0415

    settings = GoogleStorageSettings.from_environment(environment)
    return gs_source(parse_gs(text), _work(environment) / "gs", settings)


def _open_mlflow(text: str, environment: Mapping[str, str]) -> ModelSource:
    from builder.sources.mlflow import MlflowSettings, MlflowSource, parse_mlflow  # noqa: PLC0415

    settings = MlflowSettings(
        work=_work(environment) / "mlflow",
        open_bucket=lambda address: open_bucket(address, environment),
        tracking_uri=environment.get("MLFLOW_TRACKING_URI"),
        registry_uri=environment.get("MLFLOW_REGISTRY_URI"),
    )
    return MlflowSource(parse_mlflow(text), settings)


SCHEMES: Final = (
    SourceScheme(HUB, "hf://ORG/NAME[@REVISION]", _open_hub),
    SourceScheme(S3, "s3://BUCKET/PREFIX", _open_s3, is_bucket=True),
    SourceScheme(GS, "gs://BUCKET/PREFIX", _open_gs, is_bucket=True),
    SourceScheme(MLFLOW, "mlflow:models:/NAME/VERSION", _open_mlflow),
)


def open_bucket(address: str, environment: Mapping[str, str]) -> ModelSource | None:
    """The source of a bucket's address; None for any other address."""
    buckets = tuple(each.prefix for each in SCHEMES if each.is_bucket)
    return open_source(address, environment) if address.startswith(buckets) else None


def _work(environment: Mapping[str, str]) -> Path:
    """The directory of fetched files, kept between builds."""
    return user_cache(environment) / "sources"

"""Creates a ModelSource from a user's reference: the only module that lists the kinds of source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builder.sources.interface import ModelSource
from builder.sources.local import LOCAL_URI, LocalSource
from modelimage.errors import InvalidInput

HUB_SCHEME = "hf://"
S3_SCHEME = "s3://"
MLFLOW_SCHEME = "mlflow:"


def open_source(
    text: str,
    environment: Mapping[str, str],
    *,
    uri: str | None = None,
    revision: str | None = None,
) -> ModelSource:
    """Open `hf://ORG/NAME[@REVISION]`, `s3://BUCKET/PREFIX`, `mlflow:models:/NAME/VERSION`, or a directory.

    Raises InvalidInput. Reads nothing and makes no connection yet. `uri` and `revision` are labels for a directory,
    which has none of its own.
    """
    remote = _remote(text, environment)
    if remote is None:
        return LocalSource(Path(text), uri=uri or LOCAL_URI, revision=revision or "")
    if uri or revision:
        raise InvalidInput(
            "--source-uri and --revision label a local directory",
            hint="Choose a Hub revision by hf://ORG/NAME@REVISION.",
        )
    return remote


def _remote(text: str, environment: Mapping[str, str]) -> ModelSource | None:
    """Open a remote source. Its library is imported only here, because each import takes a second or more."""
    if text.startswith(HUB_SCHEME):
        from builder.sources.hub import HubModelSource, parse_hub  # noqa: PLC0415

        return HubModelSource(parse_hub(text), endpoint=environment.get("HF_ENDPOINT"))
    if text.startswith(S3_SCHEME):
        return _open_s3(text, environment)
    if text.startswith(MLFLOW_SCHEME):
        return _open_mlflow(text, environment)
    if "://" in text:
        raise InvalidInput(
            f"unknown kind of source: {text[:200]!r}",
            hint="Give a directory, hf://ORG/NAME[@REVISION], s3://BUCKET/PREFIX or mlflow:models:/NAME/VERSION.",
        )
    return None


def _open_s3(text: str, environment: Mapping[str, str]) -> ModelSource:
    from builder.sources.s3 import S3Source, parse_s3  # noqa: PLC0415

    return S3Source(parse_s3(text), _work(environment) / "s3")


def _open_mlflow(text: str, environment: Mapping[str, str]) -> ModelSource:
    from builder.sources.mlflow import MlflowSettings, MlflowSource, parse_mlflow  # noqa: PLC0415

    settings = MlflowSettings(
        work=_work(environment) / "mlflow",
        open_s3=lambda address: _open_s3(address, environment),
        tracking_uri=environment.get("MLFLOW_TRACKING_URI"),
        registry_uri=environment.get("MLFLOW_REGISTRY_URI"),
    )
    return MlflowSource(parse_mlflow(text), settings)


def _work(environment: Mapping[str, str]) -> Path:
    """The directory of fetched files, kept between builds."""
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/tmp"), ".cache")  # noqa: S108
    return Path(base) / "weightyard" / "sources"

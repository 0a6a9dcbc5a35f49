"""Maps modules to the extras that install them, to name the install command for a failed import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from modelimage.errors import Fault, WeightyardError
from modelimage.installation import install_command

# Importable top-level module -> extra. A test compares this table with pyproject.toml.
MODULE_EXTRAS: Final[Mapping[str, str]] = {
    "boto3": "builder",
    "huggingface_hub": "builder",
    "numba": "builder",
    "numpy": "builder",
    "aiohttp": "agent",
    "google": "agent",
    "grpc": "agent",
    "prometheus_client": "agent",
    "tzdata": "agent",
    # Imported before `google.cloud`, because others bring a package `google` too.
    "google_crc32c": "gs",
    "cryptography": "sign",
    "docker": "engine",
    "opentelemetry": "trace",
    "mlflow": "mlflow",
    "torch": "convert",
    "transformers": "evaluate",
    "gptqmodel": "gptq",
    "pyarrow": "parquet",
    "gguf": "demo",
}


class MissingExtra(WeightyardError):
    """A module can't be imported; an extra of the distribution installs it."""

    fault: ClassVar[Fault] = Fault.NODE


def missing_extra(error: ModuleNotFoundError) -> MissingExtra | None:
    """The error that names the extra for a failed import; None when no extra has the module."""
    module = (error.name or "").partition(".")[0]
    extra = MODULE_EXTRAS.get(module)
    if extra is None:
        return None
    return MissingExtra(
        f"this command needs the Python package {module!r}, which isn't installed",
        hint=f"Run: {install_command(extra)}",
    )

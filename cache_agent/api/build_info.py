"""`weightyard_build_info`: which version of which program a metrics page is from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

NAME: Final = "weightyard_build_info"
HELP: Final = "1, with the program's version."
LABELS: Final = ("component", "version")


def installed_version() -> str:
    """The version of the installed distribution; `unknown` for one that runs from a source tree."""
    try:
        return version("weightyard")
    except PackageNotFoundError:
        return "unknown"


def export_build_info(registry: CollectorRegistry, component: str) -> None:
    """Add the metric to a program's registry."""
    Gauge(NAME, HELP, LABELS, registry=registry).labels(component, installed_version()).set(1)

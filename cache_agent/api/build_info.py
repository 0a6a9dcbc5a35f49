"""`weightyard_build_info`: which version of which program a metrics page is from."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from modelimage.installation import installed_version

NAME: Final = "weightyard_build_info"
HELP: Final = "1, with the program's version."
LABELS: Final = ("component", "version")


def export_build_info(registry: CollectorRegistry, component: str) -> None:
    """Add the metric to a program's registry."""
    Gauge(NAME, HELP, LABELS, registry=registry).labels(component, installed_version()).set(1)

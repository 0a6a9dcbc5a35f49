"""Metrics pages of all programs: Prometheus' text, or OpenMetrics with exemplars where there are traces to find."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from modelimage.trace_headers import trace_id

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_LONGEST: Final = 1000  # characters of an Accept header that are read


def exposition(registry: CollectorRegistry, accept: str, *, traced: bool) -> tuple[bytes, str]:
    """A registry's page and its content type. OpenMetrics only if something is traced and the scraper accepts it."""
    encode, content_type = choose_encoder(accept[:_LONGEST] if traced and accept else TEXT)
    return encode(registry), content_type


def exemplar(trace: str) -> dict[str, str] | None:
    """What leads from a sample to its trace, by a `traceparent` header; None for none."""
    found = trace_id(trace)
    return {"trace_id": found} if found else None

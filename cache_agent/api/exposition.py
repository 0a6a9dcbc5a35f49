"""Metrics pages of all programs: Prometheus' text, or OpenMetrics with exemplars where there are traces to find."""

from __future__ import annotations

from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from modelimage.trace_headers import trace_id

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_LONGEST: Final = 1000  # characters of an Accept header that are read
# How names are written that older scrapers don't take. Ours are all taken as they are, by either; but for the first the
# library goes over the names character by character, which takes half of the time of a page.
_REPLACED: Final = "underscores"
_AS_THEY_ARE: Final = "allow-utf-8"


def exposition(registry: CollectorRegistry, accept: str, *, traced: bool) -> tuple[bytes, str]:
    """A registry's page and its content type. OpenMetrics only if something is traced and the scraper accepts it."""
    encode, content_type = choose_encoder(accept[:_LONGEST] if traced and accept else TEXT)
    if isinstance(encode, partial) and encode.keywords.get("escaping") == _REPLACED:
        encode = partial(encode, escaping=_AS_THEY_ARE)
    return encode(registry), content_type


def exemplar(trace: str) -> dict[str, str] | None:
    """What leads from a sample to its trace, by a `traceparent` header; None for none."""
    found = trace_id(trace)
    return {"trace_id": found} if found else None

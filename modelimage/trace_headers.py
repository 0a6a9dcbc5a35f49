"""Headers of W3C Trace Context, and whether tracing is on. Pure, and without OpenTelemetry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
VARIABLE: Final = "TRACEPARENT"
# Characters. Version 00 of a traceparent has 55; a tracestate is passed on up to what the standard asks for.
_LONGEST: Final = 128
_LONGEST_STATE: Final = 512
# Of the first version of W3C Trace Context, and of later ones as far as they are the same.
_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
# Variables that name a collector.
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a collector."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(environ.get(name) for name in ENDPOINTS)


@dataclass(frozen=True, slots=True)
class SpanOrigin:
    """Where a span comes from: the headers of its parent, and those of a trace that it is linked to.

    `began`: when, in nanoseconds since the epoch; 0 is now.
    """

    parent: str = ""
    state: str = ""
    link: str = ""
    began: int = 0


def is_parent(header: str) -> bool:
    """Whether a header is a `traceparent` of which a trace can go on."""
    return len(header) <= _LONGEST and _PARENT.fullmatch(header) is not None


def trace_id(header: str) -> str:
    """The trace of a `traceparent` header, as collectors name it; empty for a header that is none."""
    return header.split("-")[1] if is_parent(header) else ""


def passed_on(parents: Sequence[str], states: Sequence[str]) -> SpanOrigin:
    """Where a request comes from that has these headers: from nowhere if there are several parents, or one is none.

    So says the standard. A `tracestate` that is longer than what must be taken is left out.
    """
    if len(parents) != 1 or not is_parent(parents[0]):
        return SpanOrigin()
    state = ",".join(states)
    return SpanOrigin(parents[0], state if len(state) <= _LONGEST_STATE else "")

"""Quality of a quantized checkpoint, as measured: the document published beside the image.

Measurements vary with processor and library versions, so they are kept here and never in the record. Pure: values,
their JSON, and the gates that fail a build.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from quantize.errors import QualityTooLow
from quantize.schemes import Scheme
from quantize.sqnr import SqnrSummary

SCHEMA_VERSION: Final = 1
MEDIA_TYPE: Final = "application/vnd.weightyard.quality.v1+json"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of quantized model and source on the same text, token by token.

    `perplexity_ratio` is quantized / source; `kl_divergence` the mean of KL(source || quantized) in nats;
    `top1_agreement` the share of positions where both predict the same token.
    """

    perplexity_ratio: float
    kl_divergence: float
    top1_agreement: float
    source_perplexity: float
    tokens: int
    text: Digest
    evaluator: str
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Raises QualityTooLow when a number isn't finite."""
        return {
            "perplexityRatio": _rounded(self.perplexity_ratio),
            "klDivergence": _rounded(self.kl_divergence),
            "top1Agreement": _rounded(self.top1_agreement),
            "sourcePerplexity": _rounded(self.source_perplexity),
            "tokens": self.tokens,
            "text": str(self.text),
            "evaluator": self.evaluator,
            "versions": dict(sorted(self.versions.items())),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Comparison:
        return cls(
            perplexity_ratio=float(document["perplexityRatio"]),
            kl_divergence=float(document["klDivergence"]),
            top1_agreement=float(document["top1Agreement"]),
            source_perplexity=float(document["sourcePerplexity"]),
            tokens=int(document["tokens"]),
            text=Digest.parse(document["text"]),
            evaluator=str(document["evaluator"]),
            versions={str(k): str(v) for k, v in document["versions"].items()},
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality document of a variant. Law: `Quality.parse(q.to_bytes()) == q`, to 6 digits."""

    scheme: str
    format: str
    engine: str
    sqnr: SqnrSummary
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "schemaVersion": SCHEMA_VERSION,
            "scheme": self.scheme,
            "format": self.format,
            "engine": self.engine,
            "sqnr": self.sqnr.to_json(),
            "comparison": self.comparison.to_json() if self.comparison else None,
        }

    def to_bytes(self) -> bytes:
        """The artifact's content."""
        # Sorted, without spaces: equal measurements give an equal artifact digest, so attaching twice adds nothing.
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode()

    @classmethod
    def parse(cls, data: bytes) -> Quality:
        """Parse an artifact's content. Raises InvalidImage."""
        try:
            document = json.loads(data)
            # First: another version may differ in every other member.
            if document["schemaVersion"] != SCHEMA_VERSION:
                raise InvalidImage(
                    f"quality document has schema version {document['schemaVersion']!r}",
                    hint="Use a newer weightyard.",
                )
            compared = document["comparison"]
            return cls(
                str(document["scheme"]),
                str(document["format"]),
                str(document["engine"]),
                SqnrSummary.from_json(document["sqnr"]),
                Comparison.from_json(compared) if compared is not None else None,
            )
        # The artifact is untrusted: any member may be missing or of any type.
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidImage(f"malformed quality document: {error!r}") from error
        except WeightyardError as error:
            raise InvalidImage(f"malformed quality document: {error}") from error


@dataclass(frozen=True, slots=True)
class Gates:
    """Quality bounds of a build; None means no bound."""

    max_kl: float | None = None
    max_perplexity_ratio: float | None = None
    min_top1: float | None = None

    def check(self, found: Comparison, *, variant: str, calibrated: bool) -> None:
        """Raises QualityTooLow naming the variant, every missed bound with its option, and what to try.

        `calibrated` says whether the variant was made with calibration. NaN misses every bound.
        """
        bounds = [
            ("KL divergence", found.kl_divergence, "<=", self.max_kl, "--max-kl"),
            ("perplexity ratio", found.perplexity_ratio, "<=", self.max_perplexity_ratio, "--max-ppl-ratio"),
            ("top-1 agreement", found.top1_agreement, ">=", self.min_top1, "--min-top1"),
        ]  # fmt: skip
        missed = [
            f"{name} is {value:.4g}, not {sign} {bound:g} ({option})"
            for name, value, sign, bound, option in bounds
            # Negated, so that NaN, which compares false with everything, misses the bound.
            if bound is not None and not (value <= bound if sign == "<=" else value >= bound)
        ]
        if missed:
            raise QualityTooLow(
                f"the variant {variant} isn't good enough: {'; '.join(missed)}",
                hint=f"Try {_to_try(variant, calibrated=calibrated)}, or other bounds.",
            )


def _to_try(variant: str, *, calibrated: bool) -> str:
    """What loses less than this variant did, as options."""
    if not calibrated and variant != Scheme.INT8_W8A16.value:
        engine = "gptq" if variant == Scheme.INT4.value else "llm-compressor"
        return f"calibration: --engine {engine}"
    if variant == Scheme.INT4.value:
        return "int8, or more calibration text: --calibration FILE"
    if variant == Scheme.INT8.value:
        return "int8-w8a16, which rounds weights only, or more calibration text: --calibration FILE"
    return "the published weights"


def _rounded(value: float) -> float:
    if not math.isfinite(value):
        raise QualityTooLow(
            "the quantized model's predictions are not finite numbers",
            hint="The quantized weights are broken: choose another engine or scheme.",
        )
    # Further digits differ between processors and would only suggest precision.
    return round(value, 6)

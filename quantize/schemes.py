"""Schemes, formats, engines, and their valid combinations.

Pure tables and parsing; independent of files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from quantize.errors import IncompatibleOptions

GROUP_SIZES: Final = (128, 64, 32)


class Scheme(Enum):
    """The precision of weights and activations."""

    INT8 = "int8"  # weights and activations in 8 bits (W8A8), activations per token
    INT4 = "int4"  # weights in 4 bits by groups, activations as published (W4A16)
    INT8_W8A16 = "int8-w8a16"  # weights in 8 bits per row, activations as published; GPUs only


class Format(Enum):
    """Formats of quantized tensors in files. The values are the names in their ecosystems."""

    PACK_QUANTIZED = "pack-quantized"
    INT_QUANTIZED = "int-quantized"
    GPTQ = "gptq"


class QuantizationEngine(Enum):
    """The engine that computes the quantized values."""

    AUTO = "auto"
    RTN = "rtn"
    GPTQ = "gptq"
    LLM_COMPRESSOR = "llm-compressor"
    AUTO_GPTQ = "auto-gptq"


class Method(Enum):
    """The method of llm-compressor. Methods that rescale also change the layers before a matrix."""

    GPTQ = "gptq"
    AWQ = "awq"
    SMOOTHQUANT = "smoothquant"

    @property
    def rescales(self) -> bool:
        return self is not Method.GPTQ


@dataclass(frozen=True, slots=True)
class Numeric:
    """The arithmetic of a format: `bits` of a value; `grouped`: scales per group instead of per row."""

    bits: int
    grouped: bool
    packed: bool

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def divisor(self) -> float:
        """The divisor of absmax that gives the scale: half a step beyond the highest value."""
        # With the highest value itself as divisor, the lowest one would never be used.
        return self.highest + 0.5


FORMATS: Final[Mapping[Scheme, tuple[Format, ...]]] = {
    Scheme.INT8: (Format.INT_QUANTIZED,),
    Scheme.INT4: (Format.PACK_QUANTIZED, Format.GPTQ),
    Scheme.INT8_W8A16: (Format.PACK_QUANTIZED,),
}
ENGINES: Final[Mapping[Scheme, tuple[QuantizationEngine, ...]]] = {
    Scheme.INT8: (QuantizationEngine.RTN, QuantizationEngine.LLM_COMPRESSOR),
    Scheme.INT4: (
        QuantizationEngine.RTN,
        QuantizationEngine.GPTQ,
        QuantizationEngine.LLM_COMPRESSOR,
    ),
    Scheme.INT8_W8A16: (QuantizationEngine.RTN, QuantizationEngine.LLM_COMPRESSOR),
}
NUMERICS: Final[Mapping[Scheme, Numeric]] = {
    Scheme.INT8: Numeric(bits=8, grouped=False, packed=False),
    Scheme.INT4: Numeric(bits=4, grouped=True, packed=True),
    Scheme.INT8_W8A16: Numeric(bits=8, grouped=False, packed=True),
}


METHODS: Final[Mapping[Scheme, tuple[Method, ...]]] = {
    Scheme.INT8: (Method.SMOOTHQUANT, Method.GPTQ),
    Scheme.INT4: (Method.GPTQ, Method.AWQ),
    Scheme.INT8_W8A16: (Method.GPTQ,),
}


def resolve_method(
    scheme: Scheme, requested: Method | None, engine: QuantizationEngine
) -> Method | None:
    """The method of llm-compressor; None for other engines. Raises IncompatibleOptions."""
    if engine is not QuantizationEngine.LLM_COMPRESSOR:
        # Refused, not ignored: the user would believe that the method was used.
        if requested is not None:
            raise IncompatibleOptions(
                "--method needs the engine llm-compressor", hint="Add --engine llm-compressor."
            )
        return None
    if requested is not None and requested not in METHODS[scheme]:
        raise IncompatibleOptions(
            f"{requested.value} doesn't make {scheme.value}",
            hint=f"Choose --method {' or '.join(each.value for each in METHODS[scheme])}.",
        )
    return requested or METHODS[scheme][0]


def resolve_format(scheme: Scheme, requested: Format | None, engine: QuantizationEngine) -> Format:
    """The format to write: the requested one, else the engine's first.

    Raises IncompatibleOptions.
    """
    written = _written_by(engine, scheme)
    if requested is None:
        return written[0]
    if requested not in written:
        raise IncompatibleOptions(
            f"engine {engine.value} doesn't write {scheme.value} as {requested.value}",
            hint=f"Choose --format {' or '.join(each.value for each in written)}.",
        )
    return requested


def resolve_engine(
    scheme: Scheme, requested: QuantizationEngine, *, gptq_installed: bool
) -> QuantizationEngine:
    """The engine to use. `auto` selects rtn for 8 bits and gptq, where installed, for 4.

    Raises IncompatibleOptions when the engine doesn't support the scheme.
    """
    # In 8 bits, rounding to nearest loses so little that calibration isn't worth its time and its dependencies.
    if requested is QuantizationEngine.AUTO:
        return (
            QuantizationEngine.GPTQ
            if scheme is Scheme.INT4 and gptq_installed
            else QuantizationEngine.RTN
        )
    # auto-gptq is unmaintained; GPTQModel is its successor and writes the same format.
    engine = QuantizationEngine.GPTQ if requested is QuantizationEngine.AUTO_GPTQ else requested
    # Refused by table, before an engine is installed or started for minutes.
    if engine not in ENGINES[scheme]:
        raise IncompatibleOptions(
            f"engine {requested.value} doesn't do {scheme.value}",
            hint=f"Choose --engine {' or '.join(each.value for each in ENGINES[scheme])}.",
        )
    return engine


def _written_by(engine: QuantizationEngine, scheme: Scheme) -> tuple[Format, ...]:
    if engine is QuantizationEngine.GPTQ:
        return (Format.GPTQ,)
    # llm-compressor writes compressed-tensors only, which is first in the table.
    if engine is QuantizationEngine.LLM_COMPRESSOR:
        return FORMATS[scheme][:1]
    return FORMATS[scheme]

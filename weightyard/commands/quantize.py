"""`weightyard quantize`: the command that the quantize package brings."""

from __future__ import annotations

from quantize.cli import quantize

__all__ = ["quantize"]

"""Has a quantized checkpoint compared with its source by the worker, and reads what it measured.

A process of its own gives the memory of two models back, and keeps what torch and transformers print out
of the program's output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from quantize.calibration import Calibration
from quantize.engines.process import run_worker
from quantize.errors import EngineMissing
from quantize.plan import Plan
from quantize.quality import Comparison

INSTALL: Final = "pip install 'weightyard[evaluate]'"
_WORKER = "quantize.evaluate_worker"
_ROOT = Path(__file__).parents[1]


def check_installed() -> None:
    """Raises EngineMissing with the command that installs what measuring needs."""
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise EngineMissing(f"evaluating needs {module}", hint=f"Run: {INSTALL}")


def compare(source: Path, quantized: Path, plan: Plan, text: Calibration) -> Comparison:
    """Measure `quantized`, made of `source` by `plan`, on a text. Raises EngineMissing, EngineFailed."""
    check_installed()
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        result = Path(scratch) / "comparison.json"
        job = {
            "source": str(source.absolute()),
            "quantized": str(quantized.absolute()),
            "scheme": plan.scheme.value,
            "format": plan.format.value,
            "group": plan.group,
            "samples": list(text.samples),
            "text": str(text.digest),
            "result": str(result),
        }
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-m", _WORKER]
        run_worker(command, job, environment, name="evaluating", scratch=Path(scratch))
        return Comparison.from_json(json.loads(result.read_bytes()))

"""A pytest plugin that hides what only `scripts/setup.sh serve` installs: `pytest -p tests.without_torch`.

It shows which tests run after `scripts/setup.sh base` alone, on a machine that has everything.
"""

from __future__ import annotations

import sys

for _name in ("torch", "transformers", "vllm", "gptqmodel"):
    # Importing raises ModuleNotFoundError, and find_spec returns None, as for a missing package.
    sys.modules[_name] = None  # type: ignore[assignment]

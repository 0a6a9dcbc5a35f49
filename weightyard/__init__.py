"""The CLI: one `weightyard` command whose subcommands are imported lazily from the other packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

__version__ = "0.1.0"

# Other distributions have packages `builder`, `quantize` or `workspace` too: a wheel keeps ours in a folder of its
# own, where no installation overwrites or removes them. A checkout has them beside this package.
_HERE: Final = Path(__file__).resolve().parent
_WHEEL_PACKAGES: Final = _HERE / "_packages"
PACKAGES: Final = _WHEEL_PACKAGES if _WHEEL_PACKAGES.is_dir() else _HERE.parent
# First, so that no file of the working directory and no other distribution is imported in their place.
sys.path.insert(0, str(PACKAGES))

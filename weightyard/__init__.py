"""The CLI: one `weightyard` command whose subcommands are imported lazily from the other packages."""

from __future__ import annotations

__version__ = "0.1.0"

"""The command line: one `weightyard` command whose subcommands load lazily from the other packages."""

from __future__ import annotations

__version__ = "0.1.0"

"""The user's cache directory: what speeds up the next command and may be lost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def user_cache(environment: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/weightyard`, else `~/.cache/weightyard`. It need not exist."""
    base = environment.get("XDG_CACHE_HOME")
    if not base:
        home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path's raises where this returns "~"
        # A container may run as a user id that has neither HOME nor an entry in /etc/passwd.
        base = str(Path(home, ".cache")) if home != "~" else tempfile.gettempdir()
    return Path(base, "weightyard")

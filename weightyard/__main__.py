"""`python -m weightyard`: the `weightyard` command, for where its script isn't on the PATH."""

from __future__ import annotations

import sys

from weightyard.cli import main

if __name__ == "__main__":
    sys.exit(main())

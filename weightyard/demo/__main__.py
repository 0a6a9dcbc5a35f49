"""`python -m weightyard.demo`: the demonstration that `make demo` runs."""

from __future__ import annotations

import sys

from weightyard.cli import guarded
from weightyard.console import Console
from weightyard.demo.run import demo


def main() -> int:
    """Runs the demo. The exit code is 0 when the model's answer is the expected one."""
    console = Console()
    return guarded(
        lambda: demo.main(
            prog_name="python -m weightyard.demo", standalone_mode=False, obj=console
        ),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())

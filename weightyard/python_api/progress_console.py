"""The console of a Python program: silent but for the progress that it asks for."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from weightyard.console import Console


class _ProgressConsole(Console):
    """A console on stderr whose bars also move in notebooks, if they can."""

    @property
    def moving(self) -> bool:
        # Without ipywidgets rich has nothing to draw a bar with: lines are shown then.
        can_move = self.err.isatty() or (_in_notebook() and find_spec("ipywidgets") is not None)
        return can_move and not self.quiet


def progress_console(progress: bool | None) -> Console:
    """The console for a call's `progress`: None shows some on terminals and in notebooks, True always, False never."""
    console = _ProgressConsole()
    watched = console.err.isatty() or _in_notebook()
    console.configure(quiet=progress is False or (progress is None and not watched))
    return console


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, as IPython tells; it is never imported for that."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"

"""Tells a calibrating engine's stages by the decoder layers that it works on.

Imported by the workers beside it as a module of its own: an engine's environment may lack this distribution.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tell_layers(model: Any, path: str) -> None:
    """Append a line to the file `path` when a layer is run that wasn't before: its number, and how many there are."""
    layers = [
        module
        for name, module in model.named_modules()
        if re.fullmatch(r"(?:\w+\.)*layers\.\d+", name)
    ]
    seen: set[int] = set()

    def told(number: int) -> Callable[..., None]:
        def tell(*_: Any) -> None:
            # Engines run a layer once for each sample, and once more to hand its outputs to the next.
            if number not in seen:
                seen.add(number)
                with Path(path).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(["calibrating layers", number, len(layers)]) + "\n")

        return tell

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(told(number))

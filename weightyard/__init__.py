"""Weightyard: the Python API, and the packages of the `weightyard` command.

```python
import weightyard

model = weightyard.pull("registry.example/team/llama:v1", variant="int8")
with weightyard.serve("hf://org/name", cpu=True) as server:
    print(server.url)
```

What `__all__` names is stable. It is loaded when it is first used: the command line needs none of it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modelimage.errors import WeightyardError
    from weightyard.python_api import (
        BuiltImage,
        BuiltVariant,
        Cache,
        PulledModel,
        Server,
        ServingPlan,
        build,
        plan,
        pull,
        serve,
    )

__all__ = [
    "BuiltImage",
    "BuiltVariant",
    "Cache",
    "PulledModel",
    "Server",
    "ServingPlan",
    "WeightyardError",
    "__version__",
    "build",
    "plan",
    "pull",
    "serve",
]
__version__ = "0.1.0"

# Other distributions have packages `builder`, `quantize` or `workspace` too: a wheel keeps ours in a folder of its
# own, where no installation overwrites or removes them. A checkout has them beside this package.
_HERE: Final = Path(__file__).resolve().parent
_WHEEL_PACKAGES: Final = _HERE / "_packages"
PACKAGES: Final = _WHEEL_PACKAGES if _WHEEL_PACKAGES.is_dir() else _HERE.parent
# First, so that no file of the working directory and no other distribution is imported in their place.
sys.path.insert(0, str(PACKAGES))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "modelimage.errors" if name == "WeightyardError" else "weightyard.python_api"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)

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
    from weightyard.python_api.builds import BuiltImage, BuiltVariant, build
    from weightyard.python_api.local_cache import Cache, PulledModel, pull
    from weightyard.python_api.servers import Server, ServingPlan, plan, serve

# Where each name is, loaded when it is first used.
_MODULES: Final = {
    "BuiltImage": "weightyard.python_api.builds",
    "BuiltVariant": "weightyard.python_api.builds",
    "Cache": "weightyard.python_api.local_cache",
    "PulledModel": "weightyard.python_api.local_cache",
    "Server": "weightyard.python_api.servers",
    "ServingPlan": "weightyard.python_api.servers",
    "WeightyardError": "modelimage.errors",
    "build": "weightyard.python_api.builds",
    "plan": "weightyard.python_api.servers",
    "pull": "weightyard.python_api.local_cache",
    "serve": "weightyard.python_api.servers",
}
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
_PACKAGE_NAMES: Final = ("builder", "cache_agent", "modelimage", "quantize", "workspace")
# First, so that no file of the working directory and no other distribution is imported in their place.
sys.path.insert(0, str(PACKAGES))


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _check_own_packages()
    return getattr(import_module(_MODULES[name]), name)


def _check_own_packages() -> None:
    """Raises ImportError where a program's own module has the name of one of our packages, which then isn't found."""
    for name in _PACKAGE_NAMES:
        module = sys.modules.get(name)
        places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
        if module is not None and not any(map(_is_ours, places)):
            raise ImportError(
                f"another module called {name!r} is imported, from {places[0] or 'somewhere'}: Weightyard has one "
                "of this name. Rename that module, or use Weightyard in another process, such as by its command."
            )


def _is_ours(place: str) -> bool:
    # Resolved, as PACKAGES is: a checkout may be found through a link.
    return Path(place).resolve().is_relative_to(PACKAGES)


def __dir__() -> list[str]:
    return sorted(__all__)

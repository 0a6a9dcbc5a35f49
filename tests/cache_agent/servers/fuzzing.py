"""Coverage-guided fuzzing (atheris) of what parses strangers' text: addresses, ranges, headers, orders.

    .venv/bin/python -m tests.cache_agent.servers.fuzzing -runs=5000000 -max_total_time=600

Arguments are libFuzzer's. CI runs a fixed number from a fixed seed; what a longer run finds becomes a test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import PurePosixPath

import atheris

# Inputs that almost match an expression count as progress.
atheris.enabled_hooks.add("RegEx")
with atheris.instrument_imports(include=["cache_agent", "modelimage"]):
    from cache_agent.access.callers import caller_of_header, caller_of_pull_secret
    from cache_agent.mounter.orders import Order, VolumeTarget
    from cache_agent.servers.hub.routes import parse_hub_address
    from cache_agent.servers.mirror.mirror_routes import BadAddress, RequestKind, parse_address
    from modelimage.errors import InvalidInput, WeightyardError
    from modelimage.ranges import parse_content_range, parse_range

KUBELET = PurePosixPath("/var/lib/kubelet")
_PREFIXES = ("/v2/", "/v2/team/model/blobs/sha256:", "/v2/localhost/m/manifests/", "")


def mirror_address(data: atheris.FuzzedDataProvider) -> None:
    """An address is understood or has a code of the specification; what it names stays within its parts."""
    path = data.PickValueInList(list(_PREFIXES)) + data.ConsumeUnicodeNoSurrogates(200)
    namespace = data.ConsumeUnicodeNoSurrogates(40) if data.ConsumeBool() else None
    status, wanted = 404, None
    try:
        wanted = parse_address(path, namespace)
    except BadAddress as error:
        status = error.status
    assert status in (400, 404)
    if wanted is None:
        return
    assert "/" not in wanted.image.registry
    assert ".." not in wanted.image.repository.split("/")
    assert wanted.kind in (RequestKind.MANIFEST, RequestKind.TAGS) or wanted.digest
    assert "//" not in wanted.upstream_path


def byte_range(data: atheris.FuzzedDataProvider) -> None:
    """A range lies within what there is, or there is none."""
    size = data.ConsumeIntInRange(0, 1 << 62)
    header = data.PickValueInList(["bytes=", ""]) + data.ConsumeUnicodeNoSurrogates(60)
    parse_content_range(header)
    try:
        found = parse_range(header, size)
    except InvalidInput:
        return
    assert found is None or 0 <= found.start < found.stop <= size


def hub_address(data: atheris.FuzzedDataProvider) -> None:
    """No file's path leads out of its repository."""
    start = data.PickValueInList(["/api/models/", "/org/model/resolve/main/", "/"])
    try:
        found = parse_hub_address(start + data.ConsumeUnicodeNoSurrogates(200))
    except InvalidInput:
        return
    assert ".." not in found.path.split("/")
    assert not found.path.startswith("/")
    assert ".." not in found.revision


def authorization(data: atheris.FuzzedDataProvider) -> None:
    """A header makes a caller or is refused; so does a pull secret."""
    scheme = data.PickValueInList(["Basic ", "Bearer ", ""])
    secret = data.ConsumeUnicodeNoSurrogates(100)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: caller_of_header(scheme + secret),
        lambda: caller_of_pull_secret({".dockerconfigjson": secret}, "reg.test", "team/model"),
    )
    for attempt in attempts:
        try:
            attempt()
        except WeightyardError:
            continue


def mount_order(data: atheris.FuzzedDataProvider) -> None:
    """Whatever comes over the mounter's socket is an order for a pod's volume, or refused."""
    try:
        order = Order.parse(data.ConsumeBytes(300))
        target = VolumeTarget.parse(order.target, KUBELET)
    except InvalidInput:
        return
    assert str(KUBELET / target.parent / "mount") == order.target


GRAMMARS = (mirror_address, byte_range, hub_address, authorization, mount_order)


def one(data: bytes) -> None:
    """One input: its first byte chooses the grammar."""
    provided = atheris.FuzzedDataProvider(data)
    GRAMMARS[provided.ConsumeIntInRange(0, len(GRAMMARS) - 1)](provided)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()

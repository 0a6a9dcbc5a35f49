"""Registries that lie, break off, hang or mean harm, while an agent with a cached model pulls others from them."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial

from tests.faults.campaign import Kind
from tests.faults.stage import Round
from tests.servers import faulty_registry as breaking
from tests.servers import lying_registry as lying
from tests.servers.faulty_registry import Fault

MOST = 1 << 30
WANTED = (lying.anything, lying.blobs, lying.manifests)
RANGES = (
    "bytes 5-9/10",
    "bytes */10",
    "bytes 0-18446744073709551615/*",
    "chunks 1-2/3",
    "bytes 9-5/3",
)
WAITS = ("0", "1", "-5", "nan", "1e99", "9" * 400, "tomorrow", "Thu, 01 Jan 1970 00:00:00 GMT")
DOCUMENTS: Sequence[bytes] = (
    b"",
    b"{}",
    b"[" * 100_000,
    b'{"layers": 1e99999999}',
    json.dumps(
        {"schemaVersion": 2, "manifests": [{"digest": "sha256:" + "0" * 64, "size": -1}]}
    ).encode(),
    json.dumps({"schemaVersion": 2, "config": None, "layers": [None, 1, "x"]}).encode(),
    b"\xff\xfe" + b"x" * 1000,
    json.dumps(
        {"schemaVersion": 2, "layers": [{"size": 10**400}], "annotations": {"a": 1}}
    ).encode(),
)


def lied_to(make: Callable[[Round], Fault], fresh: Round) -> None:
    """A pull is refused or right while the registry lies; what is cached can be leased meanwhile."""
    site = fresh.site
    site.start()
    site.pull(0)
    fault = make(fresh)
    fresh.registry.faults = (fault,)
    for number in (1, 2):
        if site.try_pull(number) is None:
            site.whole(number)
    site.lease(0, "lease")
    site.assert_alive()
    site.assert_no_wrong_byte()
    fresh.registry.faults = ()
    site.prove()


def waited_for(make: Callable[[Round], lying.Hangs | lying.Trickle], fresh: Round) -> None:
    """Pulls that wait for a registry hold up neither the control API nor a model that is there."""
    site = fresh.site
    site.start()
    site.pull(0)
    fault = make(fresh)
    fresh.registry.faults = (fault,)
    pulling = [threading.Thread(target=site.try_pull, args=(n,)) for n in (1, 2)]
    for each in pulling:
        each.start()
    try:
        if isinstance(fault, lying.Hangs):
            fault.reached.wait()
        site.lease(0, "lease")
        site.pin(0)
        site.whole(0)
        assert site.client.check(quick=True).findings == []
    finally:
        fault.let_go.set()
        fresh.registry.faults = ()
        for each in pulling:
            each.join()
    site.assert_alive()
    site.prove()


def _times(fresh: Round) -> int:
    return fresh.rng.choice([1, 2, 5, MOST])


def _raw(fresh: Round) -> Fault:
    data, wanted = fresh.rng.choice(lying.GARBAGE), fresh.rng.choice(WANTED)
    return lying.Raw(data, wanted, times=fresh.rng.choice([1, 2, 5]))


def _limited(fresh: Round) -> Fault:
    wait = fresh.rng.choice(WAITS)
    return lying.Status(
        429, fresh.rng.choice(WANTED), times=fresh.rng.choice([1, 2]), Retry_After=wait
    )


def _failing(fresh: Round) -> Fault:
    status = fresh.rng.choice([500, 502, 503, 504])
    return lying.Status(status, fresh.rng.choice(WANTED), times=fresh.rng.choice([1, 2]))


def _refusing(fresh: Round) -> Fault:
    status = fresh.rng.choice([400, 401, 403, 404, 405, 410, 416, 418, 451])
    return lying.Status(status, fresh.rng.choice(WANTED), times=_times(fresh))


def _elsewhere(fresh: Round) -> Fault:
    places = (
        "http://169.254.169.254/latest",
        "http://127.0.0.1:1/",
        "file:///etc/passwd",
        "//",
        "http://[::1",
        "x" * 9000,
    )
    return lying.RedirectTo(
        fresh.rng.choice(places), fresh.rng.choice(WANTED), times=fresh.rng.choice([1, 3])
    )


def _challenge(fresh: Round) -> Fault:
    realms = (
        'Bearer realm="http://169.254.169.254/token",service="x"',
        'Bearer realm="file:///etc/passwd"',
        "Bearer " + "a" * 50_000,
        'Bearer realm="',
        'Bearer realm="http://127.0.0.1:1/token",scope="' + "a b " * 2000 + '"',
        "Negotiate, Basic, Digest, , ,",
    )
    return lying.Status(
        401, times=fresh.rng.choice([1, 3]), Www_Authenticate=fresh.rng.choice(realms)
    )


MAKERS: dict[str, Callable[[Round], Fault]] = {
    "wrong bytes": lambda fresh: breaking.WrongBytes(times=_times(fresh)),
    "a body that is short": lambda fresh: breaking.TruncatedBody(
        fresh.rng.randrange(200_000), times=fresh.rng.choice([1, 2, 5])
    ),
    "a body that stops": lambda fresh: breaking.Stall(fresh.rng.randrange(100_000)),
    "a body that never ends": lambda fresh: lying.Endless(
        fresh.rng.choice(WANTED), times=fresh.rng.choice([1, 2])
    ),
    "ranges that are ignored": lambda fresh: breaking.IgnoredRange(),
    "a wrong Content-Range": lambda fresh: lying.WrongContentRange(
        fresh.rng.choice(RANGES), times=_times(fresh)
    ),
    "429 with any wait": _limited,
    "server errors": _failing,
    "refusals": _refusing,
    "a redirect loop": lambda fresh: lying.RedirectLoop(
        fresh.rng.choice(WANTED), times=fresh.rng.choice([3, MOST])
    ),
    "redirects to other places": _elsewhere,
    "challenges that lead elsewhere": _challenge,
    "a gzip bomb": lambda fresh: lying.GzipBomb(fresh.rng.choice(WANTED), times=2),
    "no HTTP": _raw,
    "another manifest": lambda fresh: lying.OtherDocument(
        fresh.rng.choice(DOCUMENTS), times=_times(fresh)
    ),
}  # fmt: skip

KINDS = tuple(
    itertools.chain(
        (Kind(f"registry: {name}", partial(lied_to, make)) for name, make in MAKERS.items()),
        (
            Kind(
                "registry: no answer",
                partial(
                    waited_for, lambda fresh: lying.Hangs(fresh.rng.choice(WANTED), times=MOST)
                ),
            ),
            Kind("registry: a trickle", partial(waited_for, lambda _: lying.Trickle(times=MOST))),
        ),
    )
)

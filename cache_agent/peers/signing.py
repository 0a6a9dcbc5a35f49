"""Who may ask: a signature over the whole request, by a key that the cluster's nodes share. No sockets.

    Authorization: Weightyard-Peer key=3f2a…, sender=10.0.0.7:7946, receiver=10.0.0.9:7946, time=1800000000,
                   nonce=9c…, mac=5e…

The MAC (HMAC-SHA256) covers method, path with query, range, sender, receiver, time and nonce. So a captured request
can't be sent to another node, for another chunk, later than the clocks' tolerance, or twice. Several keys are accepted
at a time, the first signs: that is how keys are changed without a pause.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from modelimage.errors import AccessDenied, InvalidInput

SCHEME: Final = "Weightyard-Peer"
MIN_KEY_LENGTH: Final = 32
DEFAULT_SKEW_SECONDS: Final = 30.0
MAX_NONCES: Final = 200_000
_FIELD = re.compile(r"([a-z]+)=([!-+\--~]{1,255})")
_NAMES: Final = frozenset({"key", "sender", "receiver", "time", "nonce", "mac"})
_HEADER_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Key:
    """A shared key. Its name is safe to show."""

    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return hmac.new(self.secret, b"weightyard peer key name", hashlib.sha256).hexdigest()[:16]


def parse_keys(text: str) -> tuple[Key, ...]:
    """Keys from a file: one a line, the first signs, blank lines and # comments aside. Raises InvalidInput."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InvalidInput(
            "the peer key file is empty", hint="Write one with: openssl rand -hex 32"
        )
    if any(len(line) < MIN_KEY_LENGTH for line in found):
        raise InvalidInput(
            f"a peer key is shorter than {MIN_KEY_LENGTH} characters",
            hint="Make one with: openssl rand -hex 32",
        )
    return tuple(Key(line.encode()) for line in found)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a signature covers of a request. `range` is the Range header, empty without one."""

    method: str
    path: str
    range: str = ""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who asks whom, when (whole seconds since the epoch), and what makes this request unlike any other."""

    sender: str
    receiver: str
    time: int
    nonce: str


def sign(key: Key, asked: Asked, stamp: Stamp) -> str:
    """The Authorization header of a request."""
    fields = {
        "key": key.name,
        "sender": stamp.sender,
        "receiver": stamp.receiver,
        "time": str(stamp.time),
        "nonce": stamp.nonce,
        "mac": _mac(key, asked, stamp),
    }
    return f"{SCHEME} " + ", ".join(f"{name}={value}" for name, value in fields.items())


def _mac(key: Key, asked: Asked, stamp: Stamp) -> str:
    # Lengths stand before the parts: no two requests give the same text.
    parts = (
        SCHEME, asked.method, asked.path, asked.range,
        stamp.sender, stamp.receiver, str(stamp.time), stamp.nonce,
    )  # fmt: skip
    text = "".join(f"{len(part)}:{part}\n" for part in parts)
    return hmac.new(key.secret, text.encode(), hashlib.sha256).hexdigest()


def _parse(header: str) -> tuple[str, str, Stamp]:
    scheme, _, rest = header.partition(" ")
    if scheme != SCHEME or len(header) > _HEADER_LIMIT:
        raise AccessDenied("the request isn't signed by a peer")
    fields: dict[str, str] = {}
    for text in rest.split(","):
        match = _FIELD.fullmatch(text.strip())
        if match is None or match[1] in fields:
            raise AccessDenied("malformed signature")
        fields[match[1]] = match[2]
    if fields.keys() != _NAMES or not (fields["time"].isascii() and fields["time"].isdecimal()):
        raise AccessDenied("malformed signature")
    stamp = Stamp(fields["sender"], fields["receiver"], int(fields["time"][:15]), fields["nonce"])
    return fields["key"], fields["mac"], stamp


class Replayed(AccessDenied):
    """The very same request came before."""


class WrongClock(AccessDenied):
    """A request from another time: the nodes' clocks differ, or it was kept."""


@dataclass
class Verifier:
    """Checks requests that come to one node. Safe for threads. `clock` is wall time, `names` what the node goes by."""

    keys: Callable[[], Iterable[Key]]
    names: Collection[str]
    clock: Callable[[], float]
    skew: float = DEFAULT_SKEW_SECONDS
    _seen: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def verify(self, header: str | None, asked: Asked) -> str:
        """Who asks. Raises AccessDenied, WrongClock, Replayed; says no more than who has the key may know."""
        name, mac, stamp = _parse(header or "")
        if not any(self._fits(key, name, mac, asked, stamp) for key in self.keys()):
            raise AccessDenied("the signature isn't right")
        if stamp.receiver not in self.names:
            raise AccessDenied("the request is meant for another node")
        now = self.clock()
        if abs(now - stamp.time) > self.skew:
            raise WrongClock(
                f"the request is {now - stamp.time:+.0f} s old: at most {self.skew:g} s are allowed",
                hint="Keep the nodes' clocks in step.",
            )
        self._once(stamp, now)
        return stamp.sender

    @staticmethod
    def _fits(key: Key, name: str, mac: str, asked: Asked, stamp: Stamp) -> bool:
        right = hmac.compare_digest(_mac(key, asked, stamp).encode(), mac.encode())
        return right and hmac.compare_digest(key.name.encode(), name.encode())

    def _once(self, stamp: Stamp, now: float) -> None:
        """Only who has the key gets here, so only peers can fill this memory; it forgets what the clock refuses."""
        with self._lock:
            # Seconds that a request stays valid from its coming: the sender's clock may be ahead.
            while self._seen and next(iter(self._seen.values())) < now - 2 * self.skew:
                self._seen.popitem(last=False)
            name = (stamp.sender, stamp.nonce)
            if name in self._seen:
                raise Replayed("the same request came before")
            if len(self._seen) >= MAX_NONCES:
                self._seen.popitem(last=False)
            self._seen[name] = now

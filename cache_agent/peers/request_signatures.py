"""Signs and verifies requests between peers, with keys shared by the cluster's nodes. No sockets.

    Authorization: Weightyard-Peer key=3f2a…, sender=10.0.0.7:7946, receiver=10.0.0.9:7946, time=1800000000,
                   nonce=9c…, mac=5e…

The MAC (HMAC-SHA256) covers method, path with query, range, sender, receiver, time and nonce. So a captured request
can't be sent to another node, for another chunk, after the clock tolerance, or twice. Several keys are accepted, the
first one signs: keys can be rotated without downtime.
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
    """A shared key. Its name, a hash of it, may be shown."""

    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return hmac.new(self.secret, b"weightyard peer key name", hashlib.sha256).hexdigest()[:16]


def parse_keys(text: str) -> tuple[Key, ...]:
    """Parse a key file: one key a line, the first signs; ignores blank lines and # comments. Raises InvalidInput."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InvalidInput(
            "the peer key file is empty", hint="Write one with: openssl rand -hex 32"
        )
    # A short key could be guessed offline from one captured request.
    if any(len(line) < MIN_KEY_LENGTH for line in found):
        raise InvalidInput(
            f"a peer key is shorter than {MIN_KEY_LENGTH} characters",
            hint="Make one with: openssl rand -hex 32",
        )
    return tuple(Key(line.encode()) for line in found)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """The signed part of a request. `range`: the Range header, empty without one."""

    method: str
    path: str
    range: str = ""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Sender and receiver of a request, its time (whole seconds since the epoch), and its unique nonce."""

    sender: str
    receiver: str
    time: int
    nonce: str


def sign(key: Key, request: SignedRequest, stamp: Stamp) -> str:
    """The Authorization header of a request."""
    fields = {
        "key": key.name,
        "sender": stamp.sender,
        "receiver": stamp.receiver,
        "time": str(stamp.time),
        "nonce": stamp.nonce,
        "mac": _mac(key, request, stamp),
    }
    return f"{SCHEME} " + ", ".join(f"{name}={value}" for name, value in fields.items())


def _mac(key: Key, request: SignedRequest, stamp: Stamp) -> str:
    # Length-prefixed: no two requests have the same text.
    parts = (
        SCHEME, request.method, request.path, request.range,
        stamp.sender, stamp.receiver, str(stamp.time), stamp.nonce,
    )  # fmt: skip
    text = "".join(f"{len(part)}:{part}\n" for part in parts)
    # Bytes of a header that are no UTF-8 are surrogates.
    data = text.encode("utf-8", "surrogateescape")
    return hmac.new(key.secret, data, hashlib.sha256).hexdigest()


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
    # Digits limited before the conversion: the header isn't authenticated yet.
    stamp = Stamp(fields["sender"], fields["receiver"], int(fields["time"][:15]), fields["nonce"])
    return fields["key"], fields["mac"], stamp


class Replayed(AccessDenied):
    """The same request was received before."""


class WrongClock(AccessDenied):
    """The request's time is out of tolerance: the nodes' clocks differ, or it was replayed later."""


@dataclass
class Verifier:
    """Verifies requests to one node. Thread-safe. `clock`: wall time; `names`: the node's names as a receiver."""

    keys: Callable[[], Iterable[Key]]
    names: Collection[str]
    clock: Callable[[], float]
    skew: float = DEFAULT_SKEW_SECONDS
    _seen: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def verify(self, header: str | None, request: SignedRequest) -> str:
        """Verify a request and return its sender. Raises AccessDenied, WrongClock, Replayed.

        Details are given only after the MAC was right: clients without a key learn nothing.
        """
        # The MAC first: receiver, clock and replay errors are reported only to holders of a key.
        name, mac, stamp = _parse(header or "")
        if not any(self._fits(key, name, mac, request, stamp) for key in self.keys()):
            raise AccessDenied("the signature is wrong")
        # Else any peer could forward this request to a third node in the sender's name.
        if stamp.receiver not in self.names:
            raise AccessDenied("the request is meant for another node")
        now = self.clock()
        if abs(now - stamp.time) > self.skew:
            raise WrongClock(
                f"the request is {now - stamp.time:+.0f} s old: at most {self.skew:g} s are allowed",
                hint="Synchronize the nodes' clocks.",
            )
        self._once(stamp, now)
        return stamp.sender

    @staticmethod
    def _fits(key: Key, name: str, mac: str, request: SignedRequest, stamp: Stamp) -> bool:
        right = hmac.compare_digest(_mac(key, request, stamp).encode(), mac.encode())
        return right and hmac.compare_digest(key.name.encode(), name.encode())

    def _once(self, stamp: Stamp, now: float) -> None:
        """Record a nonce. Raises Replayed. Called after the MAC check, so only peers can fill this memory."""
        with self._lock:
            # Twice the tolerance: a sender whose clock is ahead by `skew` stays valid that long after its arrival.
            while self._seen and next(iter(self._seen.values())) < now - 2 * self.skew:
                self._seen.popitem(last=False)
            name = (stamp.sender, stamp.nonce)
            if name in self._seen:
                raise Replayed("the same request was used before")
            if len(self._seen) >= MAX_NONCES:
                self._seen.popitem(last=False)
            self._seen[name] = now

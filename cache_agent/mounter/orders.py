"""The mounter's protocol over its socket: JSON lines, one report per order. Pure; parsed here only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Final

from modelimage.bounds import MALFORMED
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, WeightyardError

MAX_LINE: Final = 8 << 10
MAX_LINES: Final = 64  # of one connection
_KIND: Final = "kubernetes.io~csi"


class MountOperation(Enum):
    """Operations of an order. The value goes over the wire."""

    BIND = "bind"
    UNBIND = "unbind"
    LOOK = "look"


@dataclass(frozen=True, slots=True)
class VolumeTarget:
    """A pod's volume directory: `pods/<uid>/volumes/kubernetes.io~csi/<name>/mount` below the kubelet's."""

    pod: str
    volume: str

    @classmethod
    def parse(cls, text: str, kubelet: PurePosixPath) -> VolumeTarget:
        """Parse the absolute path sent by the kubelet. Raises InvalidInput for any other path."""
        match text.removeprefix(f"{kubelet}/").split("/"):
            case ["pods", pod, "volumes", kind, volume, "mount"] if kind == _KIND:
                # Compared as a whole: `removeprefix` also passes a path that isn't below the kubelet's directory.
                target = cls(pod, volume)
                if (
                    f"{kubelet}/{target.parent}/mount" == text
                    and _is_name(pod)
                    and _is_name(volume)
                ):
                    return target
        raise InvalidInput(
            f"not the directory of a pod's CSI volume below {kubelet}: {text[:300]!r}"
        )

    @property
    def parent(self) -> str:
        """The directory that the kubelet makes for the volume, relative to its own."""
        return f"pods/{self.pod}/volumes/{_KIND}/{self.volume}"


@dataclass(frozen=True, slots=True)
class Order:
    """A request. Only BIND has a `key`. Law: `Order.parse(o.to_bytes()) == o`."""

    operation: MountOperation
    target: str
    key: Digest | None = None

    def to_bytes(self) -> bytes:
        return _line(op=self.operation.value, target=self.target, key=self.key)

    @classmethod
    def parse(cls, line: bytes) -> Order:
        """Raises InvalidInput."""
        with _well_formed("order"):
            known = json.loads(line)
            order = cls(MountOperation(known["op"]), known["target"], _key(known["key"]))
            if not isinstance(order.target, str):
                raise TypeError("target")
            if (order.key is None) == (order.operation is MountOperation.BIND):
                raise ValueError("key")
        return order


@dataclass(frozen=True, slots=True)
class Report:
    """A reply: the model bound at the target now and whether the order changed that, or the error."""

    key: Digest | None = None
    changed: bool = False
    error: str = ""
    message: str = ""

    def to_bytes(self) -> bytes:
        return _line(key=self.key, changed=self.changed, error=self.error, message=self.message)

    @classmethod
    def parse(cls, line: bytes) -> Report:
        """Raises InvalidInput."""
        with _well_formed("report"):
            known = json.loads(line)
            error, message = str(known["error"]), str(known["message"])
            return cls(_key(known["key"]), bool(known["changed"]), error, message)


def _line(*, key: Digest | None, **members: object) -> bytes:
    return json.dumps({**members, "key": key.hex if key else None}).encode() + b"\n"


def _key(value: Any) -> Digest | None:
    return None if value is None else Digest(value)


@contextmanager
def _well_formed(what: str) -> Iterator[None]:
    try:
        yield
    except (*MALFORMED, WeightyardError) as error:
        raise InvalidInput(f"malformed {what}: {error!r:.200}") from error


def _is_name(text: str) -> bool:
    return text not in ("", ".", "..") and len(text) <= 255 and text.isprintable()

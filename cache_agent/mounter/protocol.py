"""What goes over the mounter's socket: one JSON object a line, a request and its answer. Pure; parsed once, here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath

from modelimage.digest import Digest
from modelimage.errors import InvalidInput, WeightyardError

MAX_LINE = 8 << 10
_VOLUMES = "kubernetes.io~csi"


class Operation(Enum):
    """What can be asked. The value goes over the wire."""

    BIND = "bind"
    UNBIND = "unbind"
    LOOK = "look"


@dataclass(frozen=True, slots=True)
class Target:
    """A pod's volume directory: `pods/<uid>/volumes/kubernetes.io~csi/<name>/mount` below kubelet's directory."""

    pod: str
    volume: str

    @classmethod
    def parse(cls, text: str, kubelet: PurePosixPath) -> Target:
        """From the absolute path that kubelet gives. Raises InvalidInput for any other place."""
        try:
            parts = PurePosixPath(text).relative_to(kubelet).parts
        except ValueError as error:
            raise InvalidInput(f"not below {kubelet}: {text[:300]!r}") from error
        match parts:
            case ("pods", pod, "volumes", kind, volume, "mount") if kind == _VOLUMES:
                if str(kubelet.joinpath(*parts)) == text and _is_name(pod) and _is_name(volume):
                    return cls(pod, volume)
        raise InvalidInput(f"not the directory of a pod's CSI volume: {text[:300]!r}")

    @property
    def parent(self) -> str:
        """The directory that kubelet makes for the volume, below its own."""
        return f"pods/{self.pod}/volumes/{_VOLUMES}/{self.volume}"


@dataclass(frozen=True, slots=True)
class Order:
    """A request: `key` is of BIND only. Law: `Order.parse(o.to_bytes()) == o`."""

    operation: Operation
    target: str
    key: Digest | None = None

    def to_bytes(self) -> bytes:
        document = {"op": self.operation.value, "target": self.target}
        if self.key is not None:
            document["key"] = self.key.hex
        return json.dumps(document).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Order:
        """Raises InvalidInput."""
        try:
            document = json.loads(line)
            operation, target = Operation(document["op"]), document["target"]
            key = Digest(document["key"]) if "key" in document else None
        except (ValueError, KeyError, TypeError, RecursionError, WeightyardError) as error:
            raise InvalidInput(f"malformed order: {error!r:.200}") from error
        if not isinstance(target, str) or (key is None) == (operation is Operation.BIND):
            raise InvalidInput("malformed order: members")
        return cls(operation, target, key)


@dataclass(frozen=True, slots=True)
class Report:
    """An answer: what is bound at the target now, and whether the order changed that; or why it failed."""

    key: Digest | None = None
    changed: bool = False
    error: str = ""
    message: str = ""

    def to_bytes(self) -> bytes:
        key = self.key.hex if self.key else None
        document = {
            "key": key,
            "changed": self.changed,
            "error": self.error,
            "message": self.message,
        }
        return json.dumps(document).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Report:
        """Raises InvalidInput."""
        try:
            document = json.loads(line)
            key = Digest(document["key"]) if document["key"] is not None else None
            return cls(
                key, bool(document["changed"]), str(document["error"]), str(document["message"])
            )
        except (ValueError, KeyError, TypeError, RecursionError, WeightyardError) as error:
            raise InvalidInput(f"malformed report: {error!r:.200}") from error


def _is_name(text: str) -> bool:
    return (
        text not in ("", ".", "..") and len(text) <= 255 and text.isprintable() and "/" not in text
    )

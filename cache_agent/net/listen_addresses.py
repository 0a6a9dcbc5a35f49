"""Parses the addresses that servers listen on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from modelimage.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on. Port 0 means any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `PORT` (on loopback) or `HOST:PORT`. Raises InvalidInput."""
        host, _, port = text.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise InvalidInput(f"not an address to listen on: {text!r}", hint="Write HOST:PORT.")
        return cls(host.strip("[]") or "127.0.0.1", int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

"""Reads the shared keys from their file and follows its changes: rotating them needs no restart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_agent.peers.request_signatures import Key, parse_keys
from modelimage.errors import InvalidInput

_LOOK_SECONDS: Final = 5.0


@dataclass
class KeyFile:
    """The keys of a file, read again every few seconds. Thread-safe."""

    path: Path
    monotonic: Callable[[], float]
    _keys: tuple[Key, ...] = ()
    _looked: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> tuple[Key, ...]:
        """The current keys, the signing one first. Raises InvalidInput if they could never be read."""
        # The file is read under the lock too: it is small, and callers would otherwise each read it.
        with self._lock:
            now = self.monotonic()
            if now - self._looked >= _LOOK_SECONDS:
                # Before reading: an unreadable file is retried after the interval, not at each request.
                self._looked = now
                try:
                    self._keys = parse_keys(self.path.read_text())
                except (OSError, UnicodeDecodeError, InvalidInput) as error:
                    # During a rotation the file may be missing: the keys read last stay valid.
                    if not self._keys:
                        raise InvalidInput(
                            f"can't read the peer keys of {self.path}: {error}",
                            hint="Give peers.key_file a readable file with a key in each line.",
                        ) from error
            return self._keys

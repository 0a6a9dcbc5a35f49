"""The shared keys as they are in their file now: a rotated secret counts without a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_agent.peers.signing import Key, parse_keys
from modelimage.errors import InvalidInput

_LOOK_SECONDS: Final = 5.0


@dataclass
class KeyFile:
    """Keys of a file, read again when it changed. Safe for threads."""

    path: Path
    monotonic: Callable[[], float]
    _keys: tuple[Key, ...] = ()
    _looked: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> tuple[Key, ...]:
        """The keys, the signing one first. Raises InvalidInput when none could ever be read."""
        with self._lock:
            now = self.monotonic()
            if now - self._looked >= _LOOK_SECONDS:
                self._looked = now
                try:
                    self._keys = parse_keys(self.path.read_text())
                except (OSError, UnicodeDecodeError, InvalidInput) as error:
                    # In the middle of a rotation the file may be away: the keys known stay good.
                    if not self._keys:
                        raise InvalidInput(
                            f"can't read the peer keys of {self.path}: {error}",
                            hint="Give peers.key_file a readable file with a key in each line.",
                        ) from error
            return self._keys

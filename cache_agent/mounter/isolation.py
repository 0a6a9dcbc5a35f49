"""Drops the privileges that mounting doesn't need, for good: the network and most capabilities.

Must run before any thread starts: both are per-thread attributes, which new threads inherit from their parent. Unix
sockets at paths stay reachable across network namespaces.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Final

from cache_agent.mounter.kernel import function

CAP_DAC_READ_SEARCH: Final = 2  # the store's directories belong to another user
CAP_SYS_ADMIN: Final = 21  # mount(2)
_NEW_NETWORK: Final = 0x40000000
_DROP, _NO_NEW_PRIVILEGES, _AMBIENT, _CLEAR_ALL = 24, 38, 47, 4  # of prctl(2)
_VERSION_3: Final = 0x20080522  # of capset(2)

_unshare = function("unshare", ctypes.c_int)
_prctl = function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)
_capset = function("capset", ctypes.c_char_p, ctypes.c_char_p)


def leave_network() -> None:
    """Move to a new network namespace that has no interface up. Raises OSError without CAP_SYS_ADMIN."""
    _unshare(_NEW_NETWORK)


def keep_only(*capabilities: int) -> None:
    """Drop all other capabilities, also from the bounding set, and forbid gaining new ones. Raises OSError."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    # The bounding set first: it needs CAP_SETPCAP, which capset drops.
    for each in set(range(last + 1)).difference(capabilities):
        _prctl(_DROP, each, 0, 0, 0)
    _prctl(_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    _prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    kept = sum(1 << each for each in capabilities)
    # effective, permitted, inheritable; for the first 32 capabilities, then for the others
    sets = (kept & 0xFFFFFFFF, kept & 0xFFFFFFFF, 0, kept >> 32, kept >> 32, 0)
    _capset(struct.pack("Ii", _VERSION_3, 0), struct.pack("6I", *sets))

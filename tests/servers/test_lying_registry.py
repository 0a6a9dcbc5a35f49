"""What the lying registries send is what they say it is."""

from __future__ import annotations

import gzip
import zlib

from tests.servers.lying_registry import bomb


def test_a_bomb_is_sound_gzip_and_small() -> None:
    made = bomb(3 << 20)
    assert gzip.decompress(made) == bytes(3 << 20)
    assert len(made) < 10_000


def test_a_readers_first_piece_of_a_bomb_is_as_large_as_it_asks_for() -> None:
    reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert reader.decompress(bomb(), 1 << 24) == bytes(1 << 24)

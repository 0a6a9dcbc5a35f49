"""Where the user's cache is, whatever the environment lacks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from modelimage.user_cache import user_cache


def test_the_environment_decides() -> None:
    assert user_cache({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/weightyard")
    assert user_cache({"XDG_CACHE_HOME": "", "HOME": "/h"}) == Path("/h/.cache/weightyard")


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert user_cache({}) == Path(tempfile.gettempdir(), "weightyard")

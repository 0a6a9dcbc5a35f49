"""Proxies from the environment, as Go's httpproxy decides them."""

from __future__ import annotations

import pytest

from modelimage.proxies import environment_proxy


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("", "h", False),
        ("h", "h", True),
        ("h", "x.h", True),
        ("h", "xh", False),
        (".h", "x.h", True),
        (".h", "h", False),
        ("*.h", "x.h", True),
        ("H", "h", True),
        ("other, h", "h", True),
        ("*", "h", True),
        ("h:443", "h", True),
        ("h:80", "h", False),
        ("10.0.0.0/8", "10.9.0.1", True),
        ("10.0.0.0/8", "11.9.0.1", False),
        ("10.0.0.0/8", "ten.example", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("fd00::/8", "fd00::1", True),
        ("fd00::1", "fd00::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("[fd00::1]:80", "fd00::1", False),
        ("", "localhost", True),
        ("", "127.0.0.1", True),
        ("", "::1", True),
        ("10.0.0.0/99", "10.0.0.1", False),
    ],
)
def test_what_goes_through_the_proxy(no_proxy: str, host: str, direct: bool) -> None:
    environ = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": no_proxy}
    found = environment_proxy("https", host, 443, environ)
    assert found == (None if direct else "http://proxy:3128")


def test_schemes_have_their_own_proxies_and_small_letters_count_too() -> None:
    environ = {"https_proxy": "secure:1", "HTTP_PROXY": "http://plain:2"}
    assert environment_proxy("https", "h", 443, environ) == "http://secure:1"
    assert environment_proxy("http", "h", 80, environ) == "http://plain:2"
    assert environment_proxy("http", "h", 80, {}) is None

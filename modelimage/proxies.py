"""The proxy of a request according to the environment: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as Go programs read them.

Users set these variables once for all programs of a pod. Go's rules (golang.org/x/net/http/httpproxy) differ from
Python's: NO_PROXY may list networks such as 10.0.0.0/8, which is how cluster addresses are usually exempted.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping


def environment_proxy(
    scheme: str, host: str, port: int, environ: Mapping[str, str] = os.environ
) -> str | None:
    """The proxy's URL for a request to `scheme://host:port`; None for a direct connection. `host` has no brackets."""
    proxy = _variable(environ, f"{scheme}_proxy")
    if not proxy or host == "localhost" or _is_loopback(host):
        return None
    for entry in _variable(environ, "no_proxy").split(","):
        if _exempts(entry.strip().lower(), host.lower(), port):
            return None
    # A proxy without a scheme, as in `HTTPS_PROXY=proxy:3128`, is an HTTP proxy.
    return proxy if "://" in proxy else f"http://{proxy}"


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name.upper()) or environ.get(name) or ""


def _exempts(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if _network_contains(entry, host):
        return True
    # `host:port` exempts one port only. More colons without brackets are an IPv6 address.
    name, _, number = entry.rpartition(":")
    if number.isdecimal() and (name.endswith("]") or ":" not in name) and name:
        if int(number) != port:
            return False
        entry = name
    if not entry or _address(entry.strip("[]")) is not None:
        return _address(entry.strip("[]")) == _address(host) is not None
    # `example.com` exempts the domain and its subdomains, `.example.com` and `*.example.com` the subdomains only.
    suffix = "." + entry.removeprefix("*").removeprefix(".")
    return host.endswith(suffix) or host == entry


def _network_contains(entry: str, host: str) -> bool:
    address = _address(host)
    if address is None or "/" not in entry:
        return False
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None

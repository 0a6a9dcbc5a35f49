"""Decides where a URL that a server names may lead: token servers, redirects, upload locations.

A registry is named by a user or allowed by an operator; what it names in turn is neither. Without this check, whoever
runs a registry could make this process send requests to addresses that only this process can reach, such as a cloud's
instance metadata, and read the answers. Decides; connects to nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from modelimage.errors import RemoteRefused, Unreachable
from modelimage.registry.exchange import WebOrigin

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]

# Addresses of clouds' metadata and configuration that aren't link-local; Azure's is even a public one.
_METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),
    )
)
# RFC 6052 and RFC 8215: the last 32 bits are an IPv4 address that a translator connects to.
_TRANSLATED: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("64:ff9b:1::/96"),
    ipaddress.IPv6Network("::/96"),
)
_DOCKER_HUB: Final = "registry-1.docker.io"
_HINT: Final = "If that is your own server, list it: --internal-host HOST."


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it. Raises Unreachable."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # UnicodeError: IDNA can't encode a label that is empty or too long.
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"can't resolve {host}: {error}", hint=network_hint(host)) from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def network_hint(host: str) -> str:
    """What to do where a registry's host can't be reached."""
    if host == _DOCKER_HUB:
        return "Check the network. A name without a host means Docker Hub; others are HOST/NAME:TAG, or oci:DIR:TAG."
    return "Check the host name and the network."


@dataclass(frozen=True, slots=True)
class Destinations:
    """Which addresses a server may direct requests to: public ones, its own, and those of `internal`.

    `internal` holds hosts (`host`, `host:port`) and networks (`10.1.0.0/16`) that the operator lists.
    """

    internal: frozenset[str] = frozenset()
    resolve: Resolve = resolve_host

    def addresses(self, target: WebOrigin, named_by: WebOrigin) -> tuple[str, ...] | None:
        """The addresses at which `target` may be contacted; None where any is right.

        The caller must connect to one of these, because the name may resolve to others a moment later.
        Raises RemoteRefused if there are none, Unreachable if the name doesn't resolve.
        """
        # The certificate proves a registry's own name, to wherever that leads by now. Without one, only where the
        # registry has none either: a name that its owner points elsewhere would have anything inside answer for it.
        same_proof = target.encrypted or not named_by.encrypted
        if (target.host == named_by.host and same_proof) or self._lists(target):
            return None
        found = [parse_address(each) for each in self.resolve(target.host, target.port)]
        here = self._addresses_of(named_by) if any(map(is_internal, found)) else frozenset()
        if target.encrypted:
            allowed = [each for each in found if not is_internal(each) or each in here]
        else:
            # Without TLS anyone on the way answers in its place, so only the same site may stay without.
            here = here or self._addresses_of(named_by)
            allowed = [each for each in found if each in here and not named_by.encrypted]
        allowed += [each for each in found if each not in allowed and self._covers(each)]
        if not allowed:
            kind = "an internal address" if any(map(is_internal, found)) else "a URL without TLS"
            # Without the address: what internal names resolve to is nobody else's business.
            raise RemoteRefused(f"{named_by} directs to {kind}: {target}", hint=_HINT)
        return tuple(map(str, allowed))

    def _lists(self, target: WebOrigin) -> bool:
        host = f"[{target.host}]" if ":" in target.host else target.host
        return bool(self.internal & {target.host, host, f"{host}:{target.port}"})

    def _covers(self, address: IPAddress) -> bool:
        return any(address in network for network in _networks(self.internal))

    def _addresses_of(self, registry: WebOrigin) -> frozenset[IPAddress]:
        """The registry's own addresses, for servers beside it. Never link-local ones, whatever its name resolves to."""
        found = map(parse_address, self.resolve(registry.host, registry.port))
        return frozenset(each for each in found if not _is_metadata(each))


def is_internal(address: IPAddress) -> bool:
    """Whether an address belongs to a private network, this machine, this link, a cloud's metadata or nobody."""
    inner = embedded_ipv4(address)
    if inner is not None:
        return is_internal(inner)
    if _is_metadata(address) or address.is_multicast:
        return True
    # Outside 2000::/3 nothing is assigned for global use, whatever the Python release knows of it.
    if address.version == 6 and int(address) >> 125 != 1:
        return True
    return not address.is_global


def embedded_ipv4(address: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, translated (NAT64), 6to4, Teredo, ISATAP."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    isatap = int(address) >> 32 & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE)
    # `::` and `::1` are addresses of their own.
    translated = int(address) > 1 and any(address in network for network in _TRANSLATED)
    return low if isatap or translated else None


def parse_address(text: str) -> IPAddress:
    """An address as the system writes it. Raises RemoteRefused for one with a zone (`fe80::1%eth0`)."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError as error:
        raise RemoteRefused(f"not an address: {text[:100]!r}") from error
    if isinstance(found, ipaddress.IPv6Address):
        # A zone belongs to link-local addresses only, and makes equal addresses unequal.
        return ipaddress.IPv6Address(int(found))
    return found


def _is_metadata(address: IPAddress) -> bool:
    inner = embedded_ipv4(address)
    return _is_metadata(inner) if inner else address.is_link_local or address in _METADATA


def _networks(entries: Iterable[str]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for entry in entries:
        if "/" in entry:
            yield ipaddress.ip_network(entry, strict=False)


def check_internal(entries: Iterable[str]) -> frozenset[str]:
    """An operator's list, checked. Raises ValueError for an entry that is neither a host nor a network."""
    listed = frozenset(entry.strip().lower() for entry in entries)
    for entry in listed:
        if "://" in entry or not entry or any(each.isspace() for each in entry):
            raise ValueError(f"not a host: {entry!r}")
    list(_networks(listed))
    return listed

"""Which addresses a probe may connect to: the public ones, and the networks that this installation has named.

A check names its target, and whoever may add checks must not be able to look into the worker's own network with them.
So each address is judged when it is connected to, after names were looked up, at every redirect. The list is explicit:
Python's own ``is_private`` misses shared, translated and multicast addresses. An address that wraps another one
(mapped, compatible, NAT64, 6to4, Teredo, ISATAP) is judged by both. Where clouds hand out credentials is never asked,
whatever is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


#: Link-local, where every cloud's metadata is; and those that are elsewhere: Alibaba, Oracle, Azure, AWS, GCP.
METADATA = _networks(
    "169.254.0.0/16", "fe80::/10", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "fd00:ec2::/32",
    "fd20:ce::/32",
)  # fmt: skip
#: Nobody's host: "this network", multicast, reserved, broadcast.
_NO_HOST = _networks("0.0.0.0/8", "224.0.0.0/3", "::/128", "ff00::/8")
_INTERNAL = _networks(
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "2001::/23", "2001:db8::/32", "3fff::/20",
)  # fmt: skip
#: All of IPv6 that is routed in public; what lies outside is local, or wraps an IPv4 address.
_ROUTED = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def refusal(address: str, allowed: Iterable[Network] = ()) -> str | None:
    """Why this address is not connected to, in a few words without the address; None where it may be."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return "not an address"
    wrapped = inside(found)
    every = (found, *wrapped)
    if any(each in network for each in every for network in METADATA):
        return "a metadata service's or link-local address, which is never asked"
    if any(each in network for each in every for network in _NO_HOST):
        return "no host's address"
    allowed = tuple(allowed)
    if any(each in network for each in every for network in allowed) and all(
        _is_public(each) or any(each in network for network in allowed) for each in wrapped
    ):
        return None
    if not all(_is_public(each) for each in wrapped):
        return "an internal address"
    if wrapped and _is_translated(found):
        return None
    return None if _is_public(found) else "an internal address"


def inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address leads to, or may."""
    if isinstance(address, IPv4Address):
        return []
    number = int(address)
    low = IPv4Address(number & 0xFFFFFFFF)
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (address in _COMPATIBLE and number > 0xFFFF):
        found.append(low)
    if number >> 32 & 0xFFFFFFFF in _ISATAP:
        found.append(low)
    return [each for each in found if each is not None]


def _is_translated(address: Address) -> bool:
    """Whether the address stands for the one inside alone."""
    assert isinstance(address, IPv6Address)
    return address.ipv4_mapped is not None or address in _NAT64


def _is_public(address: Address) -> bool:
    if any(address in network for network in _INTERNAL):
        return False
    return isinstance(address, IPv4Address) or address in _ROUTED

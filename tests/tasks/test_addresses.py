"""No probe reaches what is not public and was not allowed: more than 300 addresses, however they are written."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from tasks.addresses import METADATA, refusal

#: One address at each end of what is no public IPv4 network, and some within.
INTERNAL_V4 = [
    str(address)
    for network in map(
        ip_network,
        ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
         "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4",
         "240.0.0.0/4", "192.88.99.0/24"),
    )
    for address in (network[0], network[1], network[network.num_addresses // 2], network[-2], network[-1])
] + ["169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16", "127.0.0.53"]  # fmt: skip


def wrapped(address: str) -> list[str]:
    """The same, inside an IPv6 address."""
    number = int(IPv4Address(address))
    high, low = number >> 16, number & 0xFFFF
    made = [
        f"::ffff:{address}", f"64:ff9b::{address}", f"2002:{high:x}:{low:x}::1", f"::{address}",
        f"2001:0:{high:x}:{low:x}::1", f"2a00:1::5efe:{address}", f"2a00:1::200:5efe:{address}",
        str(IPv6Address(int(IPv6Address("2001::")) | (number ^ 0xFFFFFFFF))),
    ]  # fmt: skip
    return [str(IPv6Address(each)) for each in made]


INTERNAL_V6 = [
    "::", "::1", "fe80::1", "fe80::1%lo", "febf::1", "fc00::1", "fd00::1", "fdff::1", "fd00:ec2::254", "fd20:ce::254",
    "fec0::1", "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "2001:2::1", "2001:10::1", "2001:20::1", "3fff::1",
    "5f00::1", "64:ff9b:1::1", "64:ff9b:1::a00:1", "4000::1", "::2",
]  # fmt: skip
CORPUS = INTERNAL_V4 + [each for address in INTERNAL_V4 for each in wrapped(address)] + INTERNAL_V6


def test_the_corpus_is_large_and_none_of_it_may_be_reached():
    assert len(set(CORPUS)) >= 300
    assert [address for address in CORPUS if refusal(address) is None] == []


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::200e", "::ffff:8.8.8.8",
     "64:ff9b::808:808", "2002:808:808::1", "223.255.255.255", "100.63.255.255", "100.128.0.0", "172.32.0.1"],
)  # fmt: skip
def test_public_addresses_may(address):
    assert refusal(address) is None


def test_what_is_allowed_may_however_it_is_written_and_nothing_else():
    allowed = (ip_network("10.0.0.0/8"), ip_network("fd00:1::/32"))
    assert refusal("10.1.2.3", allowed) is None
    assert refusal("::ffff:10.1.2.3", allowed) is None
    assert refusal("fd00:1::7", allowed) is None
    assert refusal("fd00:2::7", allowed)
    assert refusal("192.168.0.1", allowed)
    assert refusal("::ffff:127.0.0.1", allowed)


def test_metadata_services_are_never_asked_whatever_is_allowed():
    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    for network in METADATA:
        assert refusal(str(network[0]), everything)
    for address in ("169.254.169.254", "100.100.100.200", "168.63.129.16"):
        assert [each for each in (address, *wrapped(address)) if refusal(each, everything) is None] == []


@pytest.mark.parametrize("address", ["", "localhost", "1.2.3", "0x7f000001", "127.1", "2130706433", "::ffff:", "[::1]"])
def test_what_is_no_address_is_refused(address):
    assert refusal(address) == "not an address"

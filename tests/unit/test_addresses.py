"""The hole in Label Studio's list of forbidden networks is as large as asked for, and no larger."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.addresses import FORBIDDEN_BY_DEFAULT, forbidden_except


def is_forbidden(address: str, networks: list[str]) -> bool:
    return any(ip_address(address) in ip_network(network) for network in networks)


def test_without_exception_the_list_is_label_studios_own() -> None:
    """Nothing asked for, nothing opened."""
    assert [ip_network(text) for text in forbidden_except()] == [ip_network(text) for text in FORBIDDEN_BY_DEFAULT]


def test_one_address_is_opened_and_its_neighbours_stay_forbidden() -> None:
    """127.0.0.1 is let through; 127.0.0.0 and 127.0.0.2 are not, nor is any other private network."""
    networks = forbidden_except("127.0.0.1")
    assert not is_forbidden("127.0.0.1", networks)
    for address in ("127.0.0.0", "127.0.0.2", "127.255.255.255", "10.0.0.1", "169.254.169.254", "::1"):
        assert is_forbidden(address, networks)


def test_several_networks_can_be_opened() -> None:
    """A compose network and the machine itself, of either family."""
    networks = forbidden_except("172.20.0.0/24", "::1", "127.0.0.0/8")
    for address in ("172.20.0.5", "127.3.2.1", "::1"):
        assert not is_forbidden(address, networks)
    for address in ("172.20.1.0", "172.19.255.255", "::", "fe80::1", "192.168.0.1"):
        assert is_forbidden(address, networks)


def test_a_hole_larger_than_a_forbidden_network_removes_it() -> None:
    """192.0.0.0/16 covers 192.0.0.0/24 and 192.0.2.0/24 wholly."""
    networks = forbidden_except("192.0.0.0/16")
    assert not is_forbidden("192.0.0.1", networks)
    assert not is_forbidden("192.0.2.1", networks)
    assert is_forbidden("192.168.0.1", networks)


@pytest.mark.parametrize("text", ["nonsense", "10.0.0.1/8", "300.0.0.1", ""])
def test_what_is_no_network_is_a_value_error(text: str) -> None:
    """The command line turns it into a sentence."""
    with pytest.raises(ValueError, match=r".+"):
        forbidden_except(text)


@given(st.ip_addresses(), st.ip_addresses())
def test_only_the_hole_differs_from_the_default(hole: object, other: object) -> None:
    """Any address but the opened one is judged as before."""
    networks = forbidden_except(str(hole))
    assert not is_forbidden(str(hole), networks)
    if other != hole:
        assert is_forbidden(str(other), networks) == is_forbidden(str(other), list(FORBIDDEN_BY_DEFAULT))

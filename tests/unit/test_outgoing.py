"""Which addresses are connected to, whatever their notation, and that the one that was checked is the one reached."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import httpcore
import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend import outgoing
from backend.outgoing import ForbiddenAddressError, GuardedBackend, GuardedClients, kind_of

OWN = ("label-studio", 8080)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        # RFC 6890 and what the clouds document; the metadata addresses are theirs.
        *[(address, None) for address in ("93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "2a00::1", "11.0.0.1")],
        *[(address, "private") for address in ("10.0.0.1", "172.16.0.1", "172.31.250.2", "192.168.0.1", "127.0.0.1")],
        *[(address, "private") for address in ("::1", "fc00::1", "fd12::1", "100.64.0.1", "198.18.0.1", "2001:db8::1")],
        *[(address, "machine") for address in ("169.254.0.1", "169.254.169.254", "169.254.170.2", "0.0.0.0")],
        *[(address, "machine") for address in ("::", "fe80::1", "fe80::1%eth0", "febf::1", "224.0.0.1", "ff02::1")],
        *[(address, "machine") for address in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")],
        *[(address, "machine") for address in ("255.255.255.255", "192.0.0.192")],
        # The same in the notations in which IPv6 carries IPv4: mapped, translated, 6to4, compatible.
        ("::ffff:8.8.8.8", None),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::a00:1", "private"),
        ("64:ff9b::a9fe:a9fe", "machine"),
        ("::ffff:169.254.169.254", "machine"),
        ("2002:a9fe:a9fe::1", "machine"),
        ("2002:a00:1::", "private"),
        ("::169.254.169.254", "machine"),
    ],
)  # fmt: skip
def test_addresses_are_of_three_kinds(address: str, kind: str | None) -> None:
    """Public, private, and those that are never connected to."""
    assert kind_of(address) == kind


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.sampled_from(["{}", "::ffff:{}", "::{}", "64:ff9b::{}"]))
def test_no_notation_makes_an_address_more_public(ip: IPv4Address, notation: str) -> None:
    """IPv4 inside IPv6 is judged at least as strictly as by itself; ::0.0.0.1 is none, but this machine: ::1."""
    assume(notation.format(ip) != "::0.0.0.1")
    order = [None, "private", "machine"]
    assert order.index(kind_of(notation.format(ip))) >= order.index(kind_of(str(ip)))


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_every_address_has_a_kind(ip: IPv6Address) -> None:
    """Nothing that is not on the public internet passes for it."""
    assert kind_of(str(ip)) is not None or ip.is_global or ip.sixtofour or ip in outgoing._NAT64


class Names:
    """A name server of our own, and what was connected to; each name has a list of addresses for each time."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.reached: list[str] = []
        self.refusing: set[str] = set()

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        if host not in self.answers:
            raise socket.gaierror(-2, "Name or service not known")
        times = self.answers[host]
        found = times.pop(0) if len(times) > 1 else times[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    def connect_tcp(self, host: str, port: int, *_: Any) -> str:
        self.reached.append(host)
        if host in self.refusing:
            raise httpcore.ConnectError("refused")
        return f"connected to {host}:{port}"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Connects through a guard that asks the given names."""

    def act(names: Names, host: str, port: int = 80, *, allow_private: bool = False) -> Any:
        backend = GuardedBackend(OWN, allow_private=allow_private)
        monkeypatch.setattr(outgoing.socket, "getaddrinfo", names.getaddrinfo)
        monkeypatch.setattr(backend._network, "connect_tcp", names.connect_tcp)
        stream = backend.connect_tcp(host, port, 1.0)
        return stream._stream  # type: ignore[attr-defined]

    return act


def test_the_address_that_was_checked_is_connected_to(connect: Callable[..., Any]) -> None:
    """A name that answers differently the second time (DNS rebinding) gains nothing: it is asked once."""
    names = Names(evil=[["8.8.8.8"], ["127.0.0.1"]])
    assert connect(names, "evil") == "connected to 8.8.8.8:80"
    with pytest.raises(ForbiddenAddressError, match=r"evil is 127\.0\.0\.1"):
        connect(names, "evil")
    assert names.reached == ["8.8.8.8"]


def test_one_forbidden_address_among_several_is_enough(connect: Callable[..., Any]) -> None:
    """Which of them a connection would take is chance."""
    names = Names(mixed=[["8.8.8.8", "10.0.0.1"]])
    with pytest.raises(ForbiddenAddressError):
        connect(names, "mixed")
    assert names.reached == []
    assert connect(names, "mixed", allow_private=True) == "connected to 8.8.8.8:80"


def test_the_next_address_is_tried(connect: Callable[..., Any]) -> None:
    """As every client does where IPv6 has no route."""
    names = Names(dual=[["2a00::1", "8.8.8.8"]])
    names.refusing.add("2a00::1")
    assert connect(names, "dual") == "connected to 8.8.8.8:80"
    names.refusing.add("8.8.8.8")
    with pytest.raises(httpcore.ConnectError):
        connect(names, "dual")


def test_label_studio_is_reached_wherever_it_is(connect: Callable[..., Any]) -> None:
    """Under its own host and port; the same machine on another port is another one."""
    names = Names(**{"label-studio": [["10.0.0.5"]]})
    assert connect(names, *OWN) == "connected to label-studio:8080"
    with pytest.raises(ForbiddenAddressError):
        connect(names, "label-studio", 6379)


def test_allowed_private_addresses_do_not_include_the_machine_s_own(connect: Callable[..., Any]) -> None:
    """Link-local and metadata stay shut."""
    names = Names(metadata=[["169.254.169.254"]], store=[["192.168.0.7"]])
    assert connect(names, "store", allow_private=True) == "connected to 192.168.0.7:80"
    with pytest.raises(ForbiddenAddressError):
        connect(names, "metadata", allow_private=True)


def test_an_unknown_name_is_a_failed_connection(connect: Callable[..., Any]) -> None:
    """As without the guard, so that it is tried again later."""
    with pytest.raises(httpcore.ConnectError, match="not known"):
        connect(Names(), "nowhere")


def test_a_client_that_cannot_be_guarded_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of httpx that keeps its connections elsewhere must not quietly go unguarded."""
    monkeypatch.setattr(httpx.HTTPTransport, "__init__", lambda self: None)
    with pytest.raises(TypeError, match="cannot be guarded"):
        GuardedClients(httpx.URL("http://label-studio:8080"), allow_private=False)

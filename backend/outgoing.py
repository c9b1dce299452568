"""Requests to addresses that strangers name: which machines are reached, checked where the connection is made.

The very address that was checked is connected to: a name looked up a second time could lead elsewhere. Where the
environment sets a proxy for an address, the proxy looks it up and connects; then only what the address itself says can
be checked here.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from threading import Lock
from typing import Any, Literal

import httpcore
import httpx

Kind = Literal["private", "machine"]

NEVER: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::/128", "fe80::/10", "ff00::/8",
        # What clouds tell their machines about themselves, keys among it, where it is not link-local: Amazon's and
        # Google's IPv6, Alibaba, Oracle, Azure.
        "fd00:ec2::/32", "fd20:ce::254/128", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32",
    )
)  # fmt: skip
"""Link-local, unspecified and multicast addresses, and the metadata services of clouds: no image is there."""

_NAT64 = ip_network("64:ff9b::/96")


class ForbiddenAddressError(Exception):
    """A connection that was not made: `kind` says whether the address is a private one, or one never connected to."""

    def __init__(self, host: str, address: str, kind: Kind) -> None:
        super().__init__(f"{host} is {address}, which is not connected to")
        self.host = host
        self.address = address
        self.kind = kind


def kind_of(address: str) -> Kind | None:
    """What is wrong with an IP address, whatever its notation: 'machine' is one of `NEVER`; None for a public one."""
    given = ipaddress.ip_address(address.partition("%")[0])
    inner = _inner(given)
    if any(ip.version == network.version and ip in network for ip in (given, inner) for network in NEVER):
        return "machine"
    return None if inner.is_global and (inner is given or not given.is_private) else "private"


def _inner(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, on its way through a translator or a tunnel; else itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip.ipv4_mapped or ip.sixtofour:
        return ip.ipv4_mapped or ip.sixtofour or ip
    if ip in _NAT64 or 1 < int(ip) < 2**32:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Within it, requests of this thread end in a timeout once the deadline (monotonic seconds) has passed.

    A timeout of httpx bounds one read; a server that sends a byte now and then is never caught by it.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def _left(timeout: float | None, exceeded: type[Exception]) -> float | None:
    deadline = _deadline.get()
    if deadline is None:
        return timeout
    left = deadline - time.monotonic()
    if left <= 0:
        raise exceeded("the whole request took too long")
    return left if timeout is None else min(timeout, left)


class _BoundedStream(httpcore.NetworkStream):
    """A connection that is read and written no longer than `until` allows."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class GuardedBackend(httpcore.NetworkBackend):
    """Connects to public addresses, to `own` (host, port), and to private addresses if they are allowed."""

    def __init__(self, own: tuple[str, int], *, allow_private: bool) -> None:
        self._own = own
        self._allow_private = allow_private
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Raises ForbiddenAddressError when any of the host's addresses may not be connected to."""
        timeout = _left(timeout, httpcore.ConnectTimeout)
        if (host, port) == self._own:
            return _BoundedStream(self._network.connect_tcp(host, port, timeout, local_address, socket_options))
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            check(host, address, allow_private=self._allow_private)
        return _BoundedStream(self._connect(addresses, port, timeout, local_address, socket_options))

    def _connect(
        self,
        addresses: list[str],
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[Any] | None,
    ) -> httpcore.NetworkStream:
        started = time.monotonic()
        for address in addresses[:-1]:
            try:
                return self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:  # no route by IPv6, for example; the others are tried in what time is left
                timeout = None if timeout is None else max(0.1, timeout - (time.monotonic() - started))
        return self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


def check(host: str, address: str, *, allow_private: bool) -> None:
    """Raises ForbiddenAddressError unless this address of the host may be connected to."""
    kind = kind_of(address)
    if kind == "machine" or (kind == "private" and not allow_private):
        raise ForbiddenAddressError(host, address, kind)


class _GuardedTransport(httpx.HTTPTransport):
    def __init__(self, backend: GuardedBackend) -> None:
        super().__init__()
        if not isinstance(getattr(self, "_pool", None), httpcore.ConnectionPool):
            raise TypeError("this release of httpx keeps its connections elsewhere; its transport cannot be guarded")
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=backend,
        )


class GuardedClients:
    """HTTP clients that reach only what they may: a direct one, and one for each proxy of the environment."""

    def __init__(self, own: httpx.URL, *, allow_private: bool, **options: Any) -> None:
        """`own`: Label Studio's address, reached wherever it is; `options`: as for httpx.Client."""
        self._own = (own.raw_host.decode("ascii"), own.port or _default_port(own))
        self._allow_private = allow_private
        self._options = options
        self._guard = Lock()
        backend = GuardedBackend(self._own, allow_private=allow_private)
        self._direct = httpx.Client(transport=_GuardedTransport(backend), **options)
        self._behind: dict[str, httpx.Client] = {}

    def client_for(self, url: httpx.URL) -> httpx.Client:
        """The client for an address. Raises ForbiddenAddressError for one that a proxy must not be asked for."""
        proxy = _proxy_of(url)
        if proxy is None:
            return self._direct
        if (url.host, url.port or _default_port(url)) != self._own:
            try:
                ipaddress.ip_address(url.host)
            except ValueError:
                pass  # a name, which only the proxy looks up
            else:
                check(url.host, url.host, allow_private=self._allow_private)
        with self._guard:
            if proxy not in self._behind:
                self._behind[proxy] = httpx.Client(proxy=proxy, trust_env=False, **self._options)
            return self._behind[proxy]

    def close(self) -> None:
        """Closes the pooled connections."""
        for client in (self._direct, *self._behind.values()):
            client.close()


def _default_port(url: httpx.URL) -> int:
    return 443 if url.scheme == "https" else 80


def _proxy_of(url: httpx.URL) -> str | None:
    """The proxy that the environment (or the system's settings) names for an address."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"

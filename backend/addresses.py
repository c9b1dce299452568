"""Addresses: when two are the same, and Label Studio's guard against private ones, opened for this backend only.

Label Studio 1.23 refuses ML backends and webhooks on private addresses. Its guard can be switched off altogether, or
its list of forbidden networks can be given by hand (core/utils/io.py, validate_ip): that list minus one network is the
narrowest opening it allows.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

FORBIDDEN_BY_DEFAULT = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "233.252.0.0/24", "240.0.0.0/4", "255.255.255.255/32", "::/128", "::1/128", "::ffff:0:0/96",
    "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001:0000::/32", "2001:20::/28",
    "2001:db8::/32", "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8",
)  # fmt: skip
"""What Label Studio 1.23.2 forbids by itself."""


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are the same but for a closing slash."""
    return one.rstrip("/") == other.rstrip("/")


def forbidden_except(*allowed: str) -> list[str]:
    """Label Studio's forbidden networks with a hole for each allowed network, such as '127.0.0.1/32'.

    The value of USER_ADDITIONAL_BANNED_SUBNETS (joined by commas), with USE_DEFAULT_BANNED_SUBNETS=false.
    """
    networks: list[IPv4Network | IPv6Network] = [ip_network(text) for text in FORBIDDEN_BY_DEFAULT]
    for text in allowed:
        hole = ip_network(text)
        remaining: list[IPv4Network | IPv6Network] = []
        for network in networks:
            if network.version != hole.version or not network.overlaps(hole):
                remaining.append(network)
            elif hole.prefixlen > network.prefixlen:
                remaining.extend(network.address_exclude(hole))  # type: ignore[arg-type]  # same version, seen above
        networks = remaining
    return [str(network) for network in networks]

"""Which addresses a URL may lead to: the name is resolved here, and what was checked is what is connected to."""

import asyncio
import ipaddress
import socket


class NotAllowed(Exception):
    """All addresses of the name are private ones."""


async def addresses_of(host: str, port: int, allow_private: bool) -> list[str]:
    """The addresses of the name that may be connected to; numbers in any form are names like others."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    allowed = [address for address in addresses if allow_private or is_public(address)]
    if not allowed:
        raise NotAllowed(f"{host}: {', '.join(addresses)}")
    return allowed


def is_public(address: str) -> bool:
    """Whether the address is of the Internet: no loopback, private, link-local, multicast or reserved one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not found.is_global or found.is_multicast or found.is_reserved:  # reserved: also IPv4 mapped into IPv6
        return False
    return not isinstance(found, ipaddress.IPv6Address) or found.sixtofour is None

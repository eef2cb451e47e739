"""Where connections come from, and how many each address has.

Behind a proxy every socket comes from the proxy; who is really there stands last in `X-Forwarded-For`, which anybody
can write. So it is read only in what a proxy on the list has sent, and only up to the last address that is no proxy.
"""

import logging
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

log = logging.getLogger("nearcast.channels.gateway")

Network = IPv4Network | IPv6Network


class Addresses:
    """Counts connections per address; of IPv6 per /64, which is what one household or phone has."""

    def __init__(self, limit: int, proxies: Sequence[str] = ()) -> None:
        """`limit` 0 is none. Raises ValueError for a proxy that is no network."""
        self._limit = limit
        self._proxies: list[Network] = [ip_network(proxy) for proxy in proxies]
        self._counts: dict[str, int] = {}
        self._warned = False

    def is_proxy(self, address: str) -> bool:
        """Whether what this peer says about where a request comes from is believed."""
        if not self._proxies:
            return False
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._proxies)

    def origin(self, peer: str, forwarded: str) -> str:
        """Where a request comes from that a proxy passed on, by its `X-Forwarded-For` headers joined with commas."""
        for hop in reversed(forwarded.split(",")):
            address = _without_port(hop.strip())
            if address and not self.is_proxy(address):
                return address
        return peer

    def enter(self, address: str) -> bool:
        """Count one more from there. False, and nothing counted, if that would be too many."""
        place = _place(address)
        count = self._counts.get(place, 0)
        if self._limit and count >= self._limit:
            if not self._warned:
                self._warned = True
                log.warning(
                    "%r has %d connections, so more are refused; if it is a proxy, name it as a trusted one",
                    address,
                    count,
                )
            return False
        self._counts[place] = count + 1
        return True

    def leave(self, address: str) -> None:
        """Undo one `enter` that was True."""
        place = _place(address)
        count = self._counts[place] - 1
        if count:
            self._counts[place] = count
        else:
            del self._counts[place]

    def __len__(self) -> int:
        return sum(self._counts.values())


def _without_port(hop: str) -> str:
    """Some proxies write `192.0.2.1:5060` or `[2001:db8::1]:5060`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _place(address: str) -> str:
    if ":" not in address:
        return address
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Network((int(found) >> 64 << 64, 64)))
    return address

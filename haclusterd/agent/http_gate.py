"""Who gets in over HTTP: how many connections in all and of one client, and under which names.

A connection that is too many is not refused: the oldest one makes room, first of the client that
has the most. Requests are answered within milliseconds, so what is old is half open or not read.
Thus whoever opens connections and says nothing shuts out nobody. Pages that stay open (`keep`) are
not ended for others; `feed` bounds them, and the rest of the places is the others' reserve.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Collection

CLIENTS_MAX = 128
OF_ONE_CLIENT_MAX = 32  # an IPv4 address, or an IPv6 network of 64 bits
LOCAL_NAMES = ("localhost",)


class Gate:
    """The connections of one server."""

    def __init__(self, most: int = CLIENTS_MAX, of_one: int = OF_ONE_CLIENT_MAX) -> None:
        self._most, self._of_one = most, of_one
        self._inside: dict[int, tuple[str, Callable[[], None]]] = {}  # the oldest first
        self._kept: set[int] = set()
        self._by_client: Counter[str] = Counter()
        self._number = 0
        self.ended = 0  # for newer ones

    def enter(self, address: str, end: Callable[[], None]) -> int:
        """A place, to be given back by `leave`; 0 where none can be made. `end()` ends it."""
        client = client_of(address)
        if self._by_client[client] >= self._of_one and not self._end_oldest(client):
            return 0
        if len(self._inside) >= self._most and not self._end_oldest(self._greediest()):
            return 0
        self._number += 1
        self._inside[self._number] = (client, end)
        self._by_client[client] += 1
        return self._number

    def keep(self, place: int) -> None:
        """It stays for long, is not ended for others, and does not count among its client's."""
        if place in self._inside and place not in self._kept:
            self._kept.add(place)
            self._count_off(self._inside[place][0])

    def leave(self, place: int) -> None:
        """Also after it was ended."""
        if place not in self._inside:
            return
        client, _ = self._inside.pop(place)
        if place in self._kept:
            self._kept.discard(place)
        else:
            self._count_off(client)

    def _count_off(self, client: str) -> None:
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def _end_oldest(self, client: str) -> bool:
        for place, (whose, end) in self._inside.items():
            if whose == client and place not in self._kept:
                self.leave(place)
                self.ended += 1
                end()
                return True
        return False

    def _greediest(self) -> str:
        """The client with the most connections that can be ended."""
        counts = Counter(c for place, (c, _) in self._inside.items() if place not in self._kept)
        return counts.most_common(1)[0][0] if counts else ""


def client_of(address: str) -> str:
    """What counts as one client: of IPv6 everybody has a whole network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a Host header can mean this server: an address, localhost, or one of `names`.

    Anybody's name can be made to lead to 127.0.0.1 or into the network behind a firewall (DNS
    rebinding); then a browser would take what is here for that site's own, and hand it over.
    """
    bare = host.strip().lower()
    if bare.startswith("["):
        bare, _, rest = bare[1:].partition("]")
        if rest and not rest.startswith(":"):
            return False
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    bare = bare.removesuffix(".")
    if bare in LOCAL_NAMES or bare in names:
        return True
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return True

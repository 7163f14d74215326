"""Service addresses on this node: lifetimes renewed, announcements repeated, aliens heard.

One `ServiceAddresses` per heart; it knows NICs by name and follows their index and MAC as they
come and go. It decides nothing: the executor tells it what to hold.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from haclusterd.core.inputs import AlienAnswered
from haclusterd.core.model import AddressSpec, ServiceSpec
from haclusterd.heart.aliens import Aliens
from haclusterd.heart.announce import Announcer
from haclusterd.heart.errors import HeartError
from haclusterd.heart.netlink import Address, Link, Netlink

ANNOUNCE_AGAIN_US = (1_000_000, 5_000_000)  # a switch may lose the first
ANNOUNCE_ROUNDS = 3
FRAMES_MAX = 500  # of a NIC and second: more is a flood, and heart looks away until it is over
_NEVER = 1 << 62


@dataclass
class _Held:
    """One service's addresses while this node holds them."""

    renew_at_us: int
    failures: int = 0
    announce_at_us: list[int] = field(default_factory=list)


class ServiceAddresses:
    """Adds, renews, removes and announces the addresses of services by their index."""

    def __init__(
        self, services: Sequence[ServiceSpec], netlink: Netlink, *, valid_s: int, renew_us: int
    ) -> None:
        """`valid_s`: the kernel drops an address that nobody renews for so long."""
        self._services = services
        self._netlink = netlink
        self._valid_s, self._renew_us = valid_s, renew_us
        self._nics = {a.nic for s in services for a in s.addresses}
        self._links: dict[str, Link] = {}
        self._announcers: dict[str, Announcer] = {}
        self._held: dict[int, _Held] = {}
        self._by_address = {a.ip: k for k, s in enumerate(services) for a in s.addresses}
        self._aliens = Aliens()
        self._frames: dict[str, int] = {}
        self.faults: dict[str, str] = {}

    @property
    def held(self) -> frozenset[int]:
        """Services whose lifetimes are being renewed."""
        return frozenset(self._held)

    @property
    def nics(self) -> frozenset[str]:
        """The NICs that services are configured on."""
        return frozenset(self._nics)

    def sockets(self) -> list[tuple[int, str]]:
        """(descriptor, NIC) of every packet socket, for epoll."""
        return [(s.fileno(), nic) for nic, a in self._announcers.items() for s in a.sockets]

    def refresh_links(self) -> None:
        """Look all NICs up anew: at the start, and after notifications were lost."""
        present = {link.name: link for link in self._netlink.links()}
        for nic in self._nics:
            found = present.get(nic)
            if found is not None:
                self.link_changed(found)
            else:
                self._drop(nic)

    def link_changed(self, link: Link) -> bool:
        """Follow a NIC's index and MAC; True if its packet sockets were replaced."""
        if link.name not in self._nics:
            return False
        if link.removed:
            return self._drop(link.name)
        before = self._links.get(link.name)
        self._links[link.name] = link
        same = before is not None and (before.index, before.mac) == (link.index, link.mac)
        if same and link.name in self._announcers:
            return False
        self._open_announcer(link)
        return True

    def _drop(self, nic: str) -> bool:
        self._links.pop(nic, None)
        self.faults[nic] = f"{nic}: no such NIC; check the service addresses in the configuration"
        announcer = self._announcers.pop(nic, None)
        if announcer is not None:
            announcer.close()
        return announcer is not None

    def _open_announcer(self, link: Link) -> None:
        old = self._announcers.pop(link.name, None)
        if old is not None:
            old.close()
        ips = [a.ip for s in self._services for a in s.addresses if a.nic == link.name]
        try:
            self._announcers[link.name] = Announcer(link.name, link.mac, ips)
        except HeartError as error:
            self.faults[link.name] = f"announcements on {link.name}: {error}"
        else:
            self.faults.pop(link.name, None)

    def carrier(self, k: int) -> bool:
        """Whether every NIC of the service exists, is up and has carrier."""
        return all(
            (link := self._links.get(a.nic)) is not None and link.up and link.carrier
            for a in self._services[k].addresses
        )

    def add(self, k: int, now_us: int) -> str:
        """Add or refresh all addresses of the service; "" or what failed and its fix."""
        try:
            for address in self._services[k].addresses:
                self._add_one(address)
        except HeartError as error:
            return str(error)
        held = self._held.setdefault(k, _Held(0))
        held.renew_at_us = now_us + self._renew_us
        held.failures = 0
        return ""

    def _add_one(self, address: AddressSpec) -> None:
        link = self._links.get(address.nic)
        if link is None:
            raise HeartError(
                f"{address.ip}: there is no NIC {address.nic}", "check it against `ip link`"
            )
        # Deprecated for IPv6: the node's own traffic must not choose an address that may move.
        preferred_s = 0 if ":" in address.ip else None
        for _attempt in range(2):
            self._netlink.add_address(
                link.index, address.ip, address.prefix, self._valid_s, preferred_s
            )
            if ":" not in address.ip or self._netlink.answers_for(link.index, address.ip):
                return
            # Somebody else had added it, and duplicate detection runs or has failed: a renewal
            # does not end that.
            self._netlink.delete_address(link.index, address.ip, address.prefix)
        raise HeartError(
            f"{address.ip} on {address.nic} stays tentative: the kernel does not answer for it",
            f"see `ip -6 addr show dev {address.nic}`, and who else adds it",
        )

    def remove(self, k: int) -> str:
        """Take all addresses of the service off, wherever they are; "" or what failed."""
        self._held.pop(k, None)
        failures = []
        for address in self._services[k].addresses:
            link = self._links.get(address.nic)
            if link is None:
                continue  # the addresses of a NIC go with it
            try:
                self._netlink.delete_address(link.index, address.ip, address.prefix)
            except HeartError as error:
                failures.append(str(error))
        return "; ".join(failures)

    def keep(self, k: int, on: bool, now_us: int) -> None:
        """Go on or stop renewing the lifetimes; the addresses stay until they run out."""
        if on:
            self._held.setdefault(k, _Held(now_us))
        else:
            self._held.pop(k, None)

    def remove_leftovers(self) -> list[str]:
        """Remove configured service addresses that a predecessor left; which they were."""
        return remove_from_host(self._netlink, self._by_address)

    def announce(self, k: int, now_us: int) -> None:
        """Announce now, ask once who else answers, and plan the repetitions."""
        held = self._held.get(k)
        if held is not None:
            held.announce_at_us = [now_us + later for later in ANNOUNCE_AGAIN_US]
        self._announce(k)
        for address in self._services[k].addresses:
            announcer = self._announcers.get(address.nic)
            if announcer is not None:
                announcer.probe(address.ip)

    def _announce(self, k: int) -> None:
        for address in self._services[k].addresses:
            announcer = self._announcers.get(address.nic)
            if announcer is not None:
                announcer.announce(address.ip, ANNOUNCE_ROUNDS)

    def due_us(self) -> int:
        """When `look_after` is wanted next."""
        due_us = _NEVER
        for held in self._held.values():
            due_us = min(due_us, held.renew_at_us, *held.announce_at_us[:1])
        return due_us

    def look_after(self, now_us: int) -> list[tuple[int, str]]:
        """Renew and repeat what is due; (service, reason) of addresses that cannot be kept."""
        lost = []
        for k, held in list(self._held.items()):
            if held.announce_at_us and now_us >= held.announce_at_us[0]:
                held.announce_at_us.pop(0)
                self._announce(k)
            if now_us < held.renew_at_us:
                continue
            failures = held.failures + 1
            reason = self.add(k, now_us)
            if not reason:
                continue
            held.renew_at_us = now_us + self._renew_us // 4
            held.failures = failures
            if failures == 3:  # within the lifetime: once may be a NIC that is being reset
                lost.append((k, reason))
        return lost

    def address_lost(self, gone: Address, now_us: int) -> None:
        """Somebody took one of our addresses away: put it back with the next look."""
        held = self._held.get(self._by_address.get(gone.address, -1))
        if held is not None:
            # Not at once: whoever flushes in a loop must not make us spin.
            held.renew_at_us = min(held.renew_at_us, now_us + 20_000)

    def receive(self, nic: str, now_us: int) -> list[AlienAnswered]:
        """Who else spoke for our addresses on this NIC, where we hold them; at a bounded rate.

        A contested address is announced again with the next look.
        """
        announcer = self._announcers.get(nic)
        if announcer is None:
            return []
        found = []
        heard = announcer.receive()
        self._frames[nic] = self._frames.get(nic, 0) + max(len(heard), 1)
        for alien in heard:
            k = self._by_address.get(alien.address, -1)
            held = self._held.get(k)
            if held is None:
                continue
            mac = self._aliens.worth_telling(alien.address, alien.mac, now_us)
            if mac:
                found.append(AlienAnswered(k, alien.address, mac))
            if self._aliens.may_announce(alien.address, now_us):
                held.announce_at_us.insert(0, now_us)
        return found

    def flooded(self, nic: str) -> bool:
        """Whether this NIC has brought so much that its sockets are to be left alone."""
        return self._frames.get(nic, 0) > FRAMES_MAX

    def listen_again(self) -> None:
        """Once a second: floods are counted anew."""
        self._frames.clear()

    def close(self) -> None:
        for announcer in self._announcers.values():
            announcer.close()
        self._announcers.clear()


def remove_from_host(netlink: Netlink, addresses: Container[str]) -> list[str]:
    """Remove those of `addresses` that are on any NIC; which they were."""
    removed = []
    for found in netlink.addresses():
        if found.address in addresses:
            netlink.delete_address(found.index, found.address, found.prefix)
            removed.append(f"{found.address}/{found.prefix}")
    return removed

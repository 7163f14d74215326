"""What the kernel tells heart: of NICs and addresses, the fence's table, frames of strangers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from haclusterd.core.inputs import CarrierChanged
from haclusterd.heart.errors import HeartError
from haclusterd.heart.executor import Executor
from haclusterd.heart.journal import WARNING
from haclusterd.heart.loop import Loop
from haclusterd.heart.netlink import Address, Link
from haclusterd.heart.parts import Parts


class KernelNews:
    """One per heart. `look_soon`: called when a closed link may be possible to open now."""

    def __init__(
        self, loop: Loop, executor: Executor, parts: Parts, look_soon: Callable[[], None]
    ) -> None:
        self._loop, self._executor, self._parts = loop, executor, parts
        self._addresses = parts.addresses
        self._look_soon = look_soon
        self._missed = False  # news were lost, and the NICs have not been listed since

    def watch(self) -> None:
        """Before the first turn: register with the loop, and tell the core what is there."""
        self._loop.watch(self._parts.events.fileno(), self._netlink_changed)
        if self._parts.ruleset is not None:
            self._loop.watch(self._parts.ruleset.fileno(), self._ruleset_changed)
        self._watch_announcers()
        self._tell_carriers()

    def look(self) -> None:
        """Once a second."""
        self._watch_fence()
        self._addresses.listen_again()
        if self._missed:
            self._list_anew()
            self._tell_carriers()
        self._watch_announcers()

    def _list_anew(self) -> None:
        """What the kernel refuses now, it may give in a second."""
        try:
            self._addresses.refresh_links()
        except HeartError as error:
            if not self._missed:
                self._parts.journal.say(f"news of NICs were lost, and {error}", WARNING)
            self._missed = True
        else:
            self._missed = False

    def _watch_announcers(self) -> None:
        for descriptor, nic in self._addresses.sockets():
            self._loop.watch(descriptor, partial(self._heard_alien, nic))

    def _netlink_changed(self) -> None:
        changes, lost = self._parts.events.receive()
        replaced = False
        if lost:
            self._list_anew()
            replaced = True
        for change in changes:
            if isinstance(change, Link):
                replaced = self._addresses.link_changed(change) or replaced
                self._follow_fence(change)
            elif change.removed:
                self._address_removed(change)
            else:
                self._look_soon()
        if replaced:
            self._watch_announcers()
        self._tell_carriers()

    def _address_removed(self, change: Address) -> None:
        self._addresses.address_lost(change, self._loop.last_us)
        for link in self._parts.links.address_removed(change.address):
            self._parts.journal.say(f"link {link + 1} lost its address {change.address}", WARNING)

    def _tell_carriers(self) -> None:
        for k, service in enumerate(self._loop.node.services):
            up = self._addresses.carrier(k)
            if up != service.carrier:
                self._loop.feed(CarrierChanged(k, up), self._loop.last_us)

    def _ruleset_changed(self) -> None:
        ruleset = self._parts.ruleset
        if ruleset is not None and (not ruleset.receive() or ruleset.damaged):
            self._watch_fence()

    def _watch_fence(self) -> None:
        """Also when it lost a part without which it lets itself be driven as ever."""
        ruleset = self._parts.ruleset
        if ruleset is not None and ruleset.damaged:
            self._executor.reload_fence()
        else:
            self._executor.watch_fence()

    def _follow_fence(self, change: Link) -> None:
        """A NIC that (re)appears has no fence on it yet."""
        fence = self._parts.fence
        if change.removed:
            fence.device_gone(change.name)
        elif fence.needs(change.name):
            self._executor.reload_fence(f"the fence is loaded again to cover {change.name}")

    def _heard_alien(self, nic: str) -> None:
        for alien in self._addresses.receive(nic, self._loop.last_us):
            self._loop.feed(alien, self._loop.last_us)
        if self._addresses.flooded(nic):
            for descriptor, flooded in self._addresses.sockets():
                if flooded == nic:
                    self._loop.unwatch(descriptor)

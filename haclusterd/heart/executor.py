"""Carries out the core's actions on the kernel, the wire and the agent; their results are inputs.

Nothing here decides and nothing here waits. The one judgement is the fence's: between arming and
renewing it reads the clock, because the process may have stood still since the core looked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from haclusterd.core.actions import (
    Action,
    AddAddresses,
    Announce,
    Answered,
    CloseFence,
    Decided,
    EndCalls,
    Flip,
    FlushSockets,
    InForce,
    KeepAddresses,
    KillFreeswitch,
    PeerCurrent,
    Persist,
    Recover,
    Relinquish,
    RemoveAddresses,
    RenewFence,
    SendBeat,
    Speak,
    ToAgent,
)
from haclusterd.core.inputs import AddressesAdded, AddressesRemoved, FenceClosed, Input
from haclusterd.heart.addresses import ServiceAddresses
from haclusterd.heart.clock import now_us
from haclusterd.heart.fence import Fence
from haclusterd.heart.freeswitch_process import FreeswitchProcess
from haclusterd.heart.journal import ERROR, INFO, WARNING, Journal
from haclusterd.heart.links import Links
from haclusterd.wire import Wire

_RELOAD_EVERY_US = 1_000_000
_REMOVED = (
    "the fence's nf_tables table was removed by somebody and is loaded again; "
    "do not `flush ruleset` on this host, flush your own tables"
)
_NOT_CLOSED = "a service could not be silenced by routing rules; it is tried again with every beat"


class Outbox(Protocol):
    """Where messages to the agent go."""

    def send(self, message: ToAgent) -> None: ...


class Executor:
    """One per heart. `execute` returns the results of the actions, in order."""

    def __init__(
        self,
        *,
        wire: Wire,
        links: Links,
        fence: Fence,
        addresses: ServiceAddresses,
        freeswitch: FreeswitchProcess,
        agent: Outbox,
        journal: Journal,
        fence_us: int,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self.wire, self.links, self.fence = wire, links, fence
        self.addresses, self.freeswitch = addresses, freeswitch
        self._agent, self._journal = agent, journal
        self._fence_us = fence_us
        self._clock = clock
        self._reloaded_us = -_RELOAD_EVERY_US
        self._loading = False
        self.fence_fault = ""
        self.flip: Flip | None = None  # for `process`: no upgrade begins in the middle of a turn
        self.renewals_late = 0
        self.flushed = 0
        self._results: list[Input] = []
        self._do: dict[type, Callable[[Any], None]] = {
            SendBeat: self._send_beat,
            RenewFence: self._renew_fence,
            CloseFence: self._close_fence,
            AddAddresses: self._add_addresses,
            RemoveAddresses: self._remove_addresses,
            KeepAddresses: self._keep_addresses,
            Announce: self._announce,
            FlushSockets: self._flush,
            PeerCurrent: self._peer_current,
            Speak: self._speak,
            Flip: self._flip,
            InForce: agent.send,
            KillFreeswitch: self._kill_freeswitch,
            Decided: self._decided,
            EndCalls: agent.send,
            Recover: agent.send,
            Relinquish: agent.send,
            Persist: agent.send,
            Answered: agent.send,
        }

    def execute(self, actions: Sequence[Action]) -> list[Input]:
        """Carry out `actions` in the order given."""
        self._results = []
        for action in actions:
            self._do[type(action)](action)
        return self._results

    def _send_beat(self, action: SendBeat) -> None:
        for beat in action.beats:
            try:
                datagram = self.wire.seal(beat)
            except ValueError as error:
                # An error of this program, not of a peer: say it, and miss one beat rather than
                # send one that repeats a nonce.
                self._journal.say(f"a beat was not sent: {error}", ERROR)
                continue
            self.links.send(beat.link, datagram, action.to)

    def _speak(self, action: Speak) -> None:
        self.wire.version = action.version

    def _flip(self, action: Flip) -> None:
        self.flip = action

    def _renew_fence(self, action: RenewFence) -> None:
        """Arm, read the clock, renew. Twice at most: the armed time is a few jiffies."""
        for _attempt in range(2):
            if not self.fence.arm():
                self.reload_fence()
                if self.fence_fault:
                    # Neither open nor surely shut: a service that this node cannot serve. The
                    # core lets it go for the same reason as addresses that cannot be added.
                    self._results.append(AddressesAdded(action.service, False, self.fence_fault))
                return
            if self._loading or self.fence_fault:
                self._see_load_through()
                self.fence_fault = ""
            if self._clock() + self._fence_us > action.lease_until_us:
                self.renewals_late += 1
                return
            if self.fence.renew((action.service,)):
                return
        self.renewals_late += 1

    def _close_fence(self, action: CloseFence) -> None:
        """Not confirmed: the core asks again with every beat, by which time the table is back."""
        closed = self.fence.close((action.service,))
        if not closed:
            self.reload_fence(_REMOVED if self.fence.mode == "nftables" else _NOT_CLOSED)
        self._results.append(FenceClosed(action.service, closed))

    def reload_fence(self, why: str = _REMOVED) -> None:
        """The table (or a NIC's hook) is gone: load it again, beside the loop.

        At most once a second, because somebody may keep flushing the ruleset.
        """
        self._see_load_through()
        now = self._clock()
        if not self._loading and now - self._reloaded_us >= _RELOAD_EVERY_US:
            self._reloaded_us = now
            self._loading = True
            self._journal.say(why, WARNING)
            self.fence.begin_load()

    def _see_load_through(self) -> None:
        failure = self.fence.load_result() if self._loading else None
        if failure is None:
            return
        self._loading = False
        if not failure and not self.fence.arm():
            failure = "it is loaded but does not act; bring the loopback up: `ip link set lo up`"
        if failure:
            self.fence_fault = f"the fence is not in force: {failure}"
            self._journal.say(self.fence_fault, ERROR)

    def watch_fence(self) -> None:
        """Once a second: also a node that owns nothing has to notice that its table went."""
        self._see_load_through()
        if not self.fence.arm():
            self.reload_fence()
        elif self.fence.incomplete():
            self.reload_fence("the fence is loaded again to cover a NIC that appeared")
        else:
            self.fence_fault = ""

    def _add_addresses(self, action: AddAddresses) -> None:
        failure = self.addresses.add(action.service, self._clock())
        self._results.append(AddressesAdded(action.service, not failure, failure, self._clock()))

    def _remove_addresses(self, action: RemoveAddresses) -> None:
        failure = self.addresses.remove(action.service)
        self._results.append(AddressesRemoved(action.service, not failure, failure))

    def _keep_addresses(self, action: KeepAddresses) -> None:
        if not action.on and self.fence.mode == "nftables":
            return  # behind the kernel's fence a lapsed owner keeps them: its calls use them
        self.addresses.keep(action.service, action.on, self._clock())

    def _announce(self, action: Announce) -> None:
        self.addresses.announce(action.service, self._clock())

    def _flush(self, action: FlushSockets) -> None:
        self.flushed += self.links.flush()

    def _peer_current(self, action: PeerCurrent) -> None:
        self.wire.peer_current(action.node, action.incarnation)

    def _kill_freeswitch(self, action: KillFreeswitch) -> None:
        failure = self.freeswitch.kill()
        outcome = f"cannot be killed: {failure}" if failure else "is killed"
        self._journal.say(f"FreeSWITCH {outcome} ({action.reason})", WARNING)

    def _decided(self, action: Decided) -> None:
        self._journal.say(f"{action.row} {action.text}", INFO)
        self._agent.send(action)

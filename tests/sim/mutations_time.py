"""The guards of leases, freezes, freshness and the kernel's fence, each with what breaks it.

See `mutations` for the others.
"""

from __future__ import annotations

from typing import Any

from haclusterd.core import actions as act
from haclusterd.core import detector, moves, node, owner, voter
from haclusterd.core import inputs as inp
from haclusterd.core.actions import Action
from haclusterd.core.model import Beat, Identity
from haclusterd.core.state import Node, PeerLink, Service, owns
from tests.sim import host as sim_host
from tests.sim.kernel import Kernel
from tests.sim.mutations import patch

# leases -------------------------------------------------------------------------------------


def echo_without_timer() -> None:
    """Echo restarts the silence timer: the echo is given, the timer is not restarted."""
    true = voter._hear_owner

    def hear_owner(n: Node, k: int, service: Service, *rest: Any) -> None:
        silence_us = service.silence_us
        true(n, k, service, *rest)
        service.silence_us = silence_us

    patch(voter, "_hear_owner", hear_owner)


def echo_of_any_promise() -> None:
    """Promise match: an echo counts for whoever owns at the same epoch, not for one identity."""
    true_hear, true_votes = voter._hear_owner, owner.hear_votes

    def hear_owner(
        n: Node, k: int, service: Service, entry: Any, beat: Beat, now_us: int, out: list[Action]
    ) -> None:
        true_hear(n, k, service, entry, beat, now_us, out)
        if entry.promise.epoch == service.promise.epoch:
            service.lease_seq = beat.seq

    def hear_votes(n: Node, beat: Beat, now_us: int, out: list[Action]) -> None:
        for k, entry in enumerate(beat.services):
            service = n.services[k]
            if owns(service) and entry.promise.epoch == service.identity.epoch:
                sent_us = n.sent_us.get(entry.lease_seq)
                if sent_us is not None and sent_us > service.voter_sent_us[beat.sender]:
                    service.voter_sent_us[beat.sender] = sent_us
                    owner.extend_lease(n, k, service, now_us, out)
        true_votes(n, beat, now_us, out)

    patch(voter, "_hear_owner", hear_owner)
    patch(owner, "hear_votes", hear_votes)


def echo_of_another() -> None:
    """No echo outlives its promise: here the number of the former owner's beat stays."""
    true = moves.promise

    def promise(n: Node, service: Service, identity: Identity, now_us: int) -> None:
        lease_seq = service.lease_seq
        true(n, service, identity, now_us)
        service.lease_seq = lease_seq

    for module in (moves, voter):
        patch(module, "promise", promise)


def lease_from_hearing() -> None:
    """A lease counts from the owner's own send time: here from when it heard the echo."""
    true = owner.extend_lease

    def extend(n: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
        before = list(service.voter_sent_us)
        newest = max(range(len(before)), key=before.__getitem__)
        service.voter_sent_us[newest] = now_us
        true(n, k, service, now_us, out)
        service.voter_sent_us = before

    patch(owner, "extend_lease", extend)


def lease_from_win() -> None:
    """The new lease starts at the claim's own send time: here at the win."""
    true = moves._EFFECTS["take"]

    def take(n: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
        true(n, k, service, now_us, out)
        service.lease_until_us = now_us + n.spec.timing.lease_us

    moves._EFFECTS["take"] = take


def lease_longer() -> None:
    """`lease + stop <= 0.99 dead`, which config.py checks: these worlds have a longer lease."""


def lease_not_watched() -> None:
    """An owner fences when its lease ends: here it gives itself another one."""

    def lapse(n: Node, now_us: int, out: list[Action]) -> None:
        for service in n.services:
            if owns(service) and now_us >= service.lease_until_us:
                service.lease_until_us = now_us + n.spec.timing.lease_us

    patch(owner, "lapse", lapse)


def renewed_beyond_lease() -> None:
    """The fence is renewed only within the lease: here with every beat."""

    def renew(n: Node, k: int, service: Service, now_us: int, out: list[Action]) -> None:
        service.fence_until_us = now_us + n.spec.timing.fence_us
        out.append(act.RenewFence(k, now_us + 10 * n.spec.timing.lease_us))

    patch(owner, "renew", renew)


def clock_not_read() -> None:
    """Between arming and renewing heart reads the clock: here it does not."""

    def renew(self: sim_host.Host, action: act.RenewFence) -> None:
        self.kernel.arm(self.world.now, self.spec.timing.arm_us)
        self.actions.appendleft(sim_host.Open(action.service))

    sim_host._DO[act.RenewFence] = renew


def no_arm() -> None:
    """Arm before renew: the kernel renews the fence whenever it is asked."""
    patch(Kernel, "arm_ignored", True)


# freshness ----------------------------------------------------------------------------------


def one_way_is_enough() -> None:
    """Two-way beats only: here every new beat counts as two-way."""
    true = detector._measure

    def measure(n: Node, line: PeerLink, beat: Beat, now_us: int) -> bool:
        true(n, line, beat, now_us)
        return True

    patch(detector, "_measure", measure)


def old_echoes_count() -> None:
    """An echo proves freshness within three beats: here for ever."""

    def measure(n: Node, line: PeerLink, beat: Beat, now_us: int) -> bool:
        echo = beat.echoes[n.spec.me]
        return echo is not None and n.sent_us.get(echo.seq) is not None

    patch(detector, "_measure", measure)


# freezes ------------------------------------------------------------------------------------


def no_flush() -> None:
    """After a thaw the sockets are flushed: here the past is read."""
    sim_host._DO[act.FlushSockets] = sim_host.Host._nothing


def same_incarnation() -> None:
    """After a thaw a node has a new incarnation: here it goes on as the old one."""
    true = node._froze

    def froze(n: Node, event: inp.Froze, now_us: int, out: list[Action]) -> None:
        incarnation, sent_us = n.incarnation, dict(n.sent_us)
        true(n, event, now_us, out)
        n.incarnation = incarnation
        n.sent_us.update(sent_us)

    node._TAKE[inp.Froze] = froze


def freeze_not_noticed() -> None:
    """After a freeze: first fence, then flush, then listen. Here nothing was noticed."""
    node._TAKE[inp.Froze] = lambda *args: None


def thaw_unfenced() -> None:
    """After a thaw the fence is closed first: here the former life's right is not ended."""
    true = node._froze

    def froze(n: Node, event: inp.Froze, now_us: int, out: list[Action]) -> None:
        patch(node, "happen", lambda *args, **words: False)
        true(n, event, now_us, out)
        patch(node, "happen", moves.happen)

    node._TAKE[inp.Froze] = froze


def lease_end_unseen() -> None:
    """A lease that ran out is noticed in every step: here nobody looks."""
    patch(owner, "lapse", lambda *args: None)


def thaw_keeps_timers() -> None:
    """Silence timers restart after a thaw: here what was missed counts as silence."""
    true = node._froze

    def froze(n: Node, event: inp.Froze, now_us: int, out: list[Action]) -> None:
        silences = [s.silence_us for s in n.services]
        true(n, event, now_us, out)
        for service, silence_us in zip(n.services, silences, strict=True):
            service.silence_us = silence_us

    node._TAKE[inp.Froze] = froze


def promises_not_restored() -> None:
    """Promises survive a restart: here what is on the disk is not read."""
    node._TAKE[inp.Restored] = lambda *args: None

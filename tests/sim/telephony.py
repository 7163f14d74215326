"""The simulated FreeSWITCH and agent of one host: calls by service, reports, hangs and stalls.

A call is not modelled: what counts is on which host the calls of a service live, and that they
are taken up once, by the right node, and ended where they are no longer served.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from haclusterd.core import actions as act
from haclusterd.core import inputs as inp
from haclusterd.core.model import Identity, State
from haclusterd.core.state import NEVER, owns

if TYPE_CHECKING:
    from tests.sim.host import Host

RECOVERY_US = (20_000, 300_000)
RESTART_US = (1_000_000, 3_000_000)
TURN_US = 5_000_000  # in the first one everybody is well


class Telephony:
    """`calls` are the services whose calls live in this host's FreeSWITCH."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.calls: set[int] = set()
        self.failed: set[int] = set()  # services whose calls could not be recovered here
        # Taken up in a FreeSWITCH whose predecessor's end heart has not heard of yet: it gives no
        # order to end these. The agent does, once another node owns them (agent.services).
        self.unsure: set[int] = set()
        self.up = True
        self.agent_up = True
        self.recoveries_fail = 0.0  # a chance
        self.exited_us = NEVER  # by this host's clock
        self.recovered_us: dict[int, int] = {}  # by service: when the newest was decided
        # By service: of the Recover that brought its calls, in the numbers of the world's hosts.
        self.ordered: dict[int, Identity] = {}

    def boot(self) -> None:
        """A heart starts: its agent ends calls that FreeSWITCH still has, for others own them."""
        self.calls.clear()
        self.unsure.clear()
        self.failed.clear()
        self.agent_up = True
        self.host.todo.append(inp.AgentChanged(True))
        self.report()

    def report(self) -> None:
        """The agent's word, if there is an agent to give it."""
        if not self.agent_up:
            return
        up = self.up
        services = tuple(inp.ServiceReport(up, "", 0) for _ in self.host.spec.services)
        health = self._health() if up else 0
        self.host.todo.append(inp.LocalReport(up, 1, health, 0, 0, False, services))

    def _health(self) -> int:
        """Of a node that comes back one in four is impaired: that may only reorder (MS4)."""
        turn = self.host.world.now // TURN_US
        return 40 if turn and (turn + self.host.me) % 4 == 0 else 100

    def has(self, k: int) -> bool:
        """The calls of the service are here, or it is known that they are lost; or the core has not
        been told yet, in this very turn, that FreeSWITCH ended."""
        return k in self.calls or k in self.failed or self._is_unheard()

    def _is_unheard(self) -> bool:
        waiting = (*self.host.todo, *self.host.batch)
        return any(isinstance(news, inp.FreeswitchExited) for news in waiting)

    def later(self, delay_us: int, what: str) -> None:
        host = self.host
        host.world.at(host.world.now + delay_us, partial(self._due, what), host.life)

    def _due(self, what: str, t: int, life: int) -> None:
        if life == self.host.life and self.host.alive:
            getattr(self, what)(t)

    # FreeSWITCH -----------------------------------------------------------------------------

    def exit(self) -> None:
        """It dies, its calls with it; it is back as a standby one to three seconds later."""
        self.up = False
        self.calls.clear()
        self.unsure.clear()
        self.failed.clear()
        self.exited_us = self.host.local(self.host.world.now)
        self.host.todo.append(inp.FreeswitchExited("was killed"))
        self.later(self.host.rng.randrange(*RESTART_US), "back")

    def back(self, t: int) -> None:
        self.up = True
        self.report()
        self.host.run(t, self.host.life)
        self.in_place(t)

    def in_place(self, t: int) -> None:
        """The agent recovers here what this node still owns. After a heart that stands still: it
        goes on as the owner, or is fenced, and then the core has the calls recovered itself."""
        host = self.host
        if host.thaw_at > t:
            self.later(host.thaw_at - t + 1, "in_place")
            return
        if host.node is None or not (self.up and self.agent_up):
            return
        for k, service in enumerate(host.node.services):
            if service.state is State.OWNED and k not in self.calls:
                self.failed.discard(k)
                self.calls.add(k)
                self.unsure.discard(k)
                self.recovered_us[k] = host.local(host.world.now)
                self.ordered[k] = host.globally(service.recovering)
                self._ends_later(k, self.ordered[k])

    def hang(self, after_us: int) -> None:
        """It stops answering; the agent says so after three probes."""
        self.later(after_us, "found_hung")

    def found_hung(self, t: int) -> None:
        if self.up and self.agent_up:
            self.host.give(t, inp.FreeswitchHung(1))

    def killed(self, action: act.KillFreeswitch) -> None:
        host = self.host
        if host.node is not None and "probes" not in action.reason:
            for k, service in enumerate(host.node.services):
                if owns(service) and k in self.calls:
                    host.world.checkers.ended_foreign(host.world.now, host.me, k, action.reason)
        if self.up:
            self.exit()

    # agent ----------------------------------------------------------------------------------

    def stall(self, for_us: int) -> None:
        """The agent is gone or stands still: heart notices, its reports get old."""
        self.agent_up = False
        self.host.todo.append(inp.AgentChanged(False))
        self.later(for_us, "agent_back")

    def agent_back(self, t: int) -> None:
        self.agent_up = True
        self.host.write_rest(t)
        self.host.todo.append(inp.AgentChanged(True))
        self.report()
        self.host.run(t, self.host.life)
        self.in_place(t)

    def recover(self, action: act.Recover) -> None:
        k = action.service
        # Of a turn that stood still: the core has heard since that FreeSWITCH ended before it was
        # carried out. FreeSWITCH refuses what it has (FREESWITCH.md 1.3, Duplicate UUID). An agent
        # that is given the same order as the one before it finds what that one has done.
        whose = self.host.globally(action.identity)
        again = k in self.calls and self.recovered_us[k] > self.exited_us
        again = again and self.ordered[k] != whose
        self.recovered_us[k] = self.host.now_us
        self.ordered[k] = whose
        self.host.world.recovered(self.host.me, action, again)
        self.failed.discard(k)
        (self.calls if self.up else self.failed).add(k)
        self.unsure.discard(k)
        if self.up and self._is_unheard():
            self.unsure.add(k)
        self._ends_later(k, whose)

    def _ends_later(self, k: int, whose: Identity) -> None:
        ended = partial(self._recovered, k, whose)
        delay_us = self.host.rng.randrange(*RECOVERY_US)
        self.host.world.at(self.host.world.now + delay_us, ended, self.host.life)

    def _recovered(self, k: int, whose: Identity, t: int, life: int) -> None:
        host = self.host
        if life != host.life or not host.alive or not self.agent_up:
            return
        # Also of one that was down when it was ordered, and is back: there is nothing of it yet.
        reason = "" if self.up and k not in self.failed else "nothing listens on 127.0.0.1:8021"
        if self.recoveries_fail > 0 and host.rng.random() < self.recoveries_fail:
            reason = "the profile does not start"
        if fails := bool(reason):
            self.calls.discard(k)  # the agent ends what it had taken up
            self.failed.add(k)
            host.world.checkers.given_up.add((k, whose))
        host.give(t, inp.RecoveryEnded(k, host.locally(whose), not fails, reason))
        service = host.node.services[k] if host.node is not None else None
        if service is not None and service.state is State.STANDBY and not service.holding:
            self.calls.discard(k)  # given up meanwhile for an earlier failure: the agent ends them

    def end_calls(self, action: act.EndCalls) -> None:
        host = self.host
        if host.node is not None and owns(host.node.services[action.service]):
            host.world.checkers.ended_foreign(host.world.now, host.me, action.service, "EndCalls")
        self.calls.discard(action.service)
        self.unsure.discard(action.service)
        self.failed.discard(action.service)

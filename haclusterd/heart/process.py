"""Heart as a whole: its parts put together, its chores beside the protocol, its orderly end.

`main` decides how a heart comes to be (a fresh start, or taking over from a predecessor); here it
lives. The protocol itself is the core's, its timing the loop's.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence

import msgspec

from haclusterd.core.actions import Answered, Flip, InForce, Published
from haclusterd.core.inputs import (
    AddressesAdded,
    AgentChanged,
    FreeswitchExited,
    KeysGiven,
    LocalReport,
    Restored,
    StageRequested,
    StopRequested,
    TraceRequested,
    UpgradeRequested,
)
from haclusterd.core.moves import promised
from haclusterd.core.node import stopped
from haclusterd.core.reconfigure import may_claim, whose_turn
from haclusterd.core.state import Node
from haclusterd.core.view import AlarmView, view
from haclusterd.heart.errors import HeartError
from haclusterd.heart.executor import Executor
from haclusterd.heart.journal import WARNING
from haclusterd.heart.kernel_news import KernelNews
from haclusterd.heart.keys_given import use_keys
from haclusterd.heart.loop import Chores, Loop
from haclusterd.heart.parts import Parts
from haclusterd.heart.sdnotify import watchdog_interval_ms
from haclusterd.heart.tallies import Tallies
from haclusterd.heart.trace_out import TraceOut
from haclusterd.heart.upgrade_run import Upgrade

_LOOK_EVERY_US = 1_000_000
_VIEW_PAUSE_US = 20_000  # a burst of decisions is one view
STOP_US = 5_000_000  # a planned stop that finds no taker ends here
_LINGER_US = 1_000_000  # after the release: to hear who took over, and end the calls here
_AGENT_STOP_S = 2.0
_OLD_AGENT_US = 5_000_000
_OTHER_TABLE = "the fence is loaded again for the addresses, NICs and times of the file in force"

_encode = msgspec.msgpack.Encoder().encode


class Heart(Chores):
    """One per process. `run` returns the exit status."""

    def __init__(
        self,
        node: Node,
        parts: Parts,
        *,
        successor_command: Sequence[str],
        lock: int,
        last_us: int = 0,
    ) -> None:
        self._parts = parts
        self._journal = parts.journal
        self._addresses, self._agent = parts.addresses, parts.agent
        executor = Executor(
            wire=parts.wire,
            links=parts.links,
            fence=parts.fence,
            addresses=parts.addresses,
            freeswitch=parts.freeswitch,
            agent=parts.agent,
            journal=parts.journal,
            fence_us=node.spec.timing.fence_us,
        )
        self.loop = Loop(node, executor, self, last_us=last_us)
        self._executor = executor
        self._trace_out = TraceOut(parts.agent, self.loop.recorder)
        self._kernel = KernelNews(self.loop, executor, parts, self._look_soon)
        self._tallies = Tallies(
            node.spec, parts.wire, parts.links, parts.journal.say, self.loop.last_us
        )
        self._upgrade = Upgrade(self.loop, parts, successor_command, lock)
        self._running = True
        self._look_at_us = 0
        self._published_us = 0
        self._watchdog_us = watchdog_interval_ms() * 1000
        self._watchdog_at_us = 0 if self._watchdog_us else 1 << 62
        self._stop_by_us = 0
        self._released_us = 0
        self._agent_up = False
        self._old_agent_by_us = 0
        self._old_agent_gone: Callable[[], bool] = lambda: True
        self._link_faults: dict[int, str] = {}

    # -- before the first turn -------------------------------------------------------------------

    def begin(self, known: Sequence[StageRequested | Restored]) -> None:
        """A fresh start: tell the core what it said before, look at the NICs, open the links."""
        now = self.loop.now()
        for event in known:
            self.loop.feed(event, now)
        self._watch_everything()

    def go_on(
        self,
        agent_gone: Callable[[], bool],
        freeswitch: tuple[int, int],
        *,
        joined: bool = False,
        refenced: bool = False,
    ) -> None:
        """After an upgrade: the agent is started once `agent_gone` says its predecessor is.

        `joined`: this set is in force, and the disk does not say so; `refenced`: the predecessor's
        table is of another file.
        """
        now = self.loop.now()
        # The predecessor's agent may not have got to write it.
        self._agent.send(promised(self.loop.node))
        if joined:
            self._agent.send(InForce(self.loop.node.spec.revision))
        if refenced:
            self._executor.reload_fence(_OTHER_TABLE)
        self._old_agent_gone = agent_gone
        self._old_agent_by_us = now + _OLD_AGENT_US
        self.loop.feed(AgentChanged(False), now)
        self._watch_everything()
        if self._parts.freeswitch.adopt(freeswitch):
            self._watch_freeswitch()
        else:
            self.loop.feed(FreeswitchExited(), now)

    def _watch_everything(self) -> None:
        self._kernel.watch()
        self._reopen_links()
        for link in range(len(self._parts.links)):
            self.loop.watch_link(link)

    def watch_signals(self) -> None:
        """SIGTERM and SIGINT: planned stop. SIGHUP: upgrade."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)

        def heard(held: socket.socket = theirs) -> None:
            for number in ours.recv(64):
                if number == signal.SIGHUP:
                    self._begin_upgrade(-1)
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._request_stop()

        self.loop.watch(ours.fileno(), heard)

    @property
    def handed_over(self) -> bool:
        """Whether a successor goes on with everything that was this heart's."""
        return self._upgrade.handed_over

    # -- the life --------------------------------------------------------------------------------

    def run(self) -> int:
        """Turn until the planned end, then leave in order. The exit status."""
        self._parts.notifier.notify("READY=1", "STATUS=running")
        while self._running and not self._upgrade.handed_over:
            self.loop.turn()
            if self._executor.flip is not None:
                self._take_up(self._executor.flip)
            self._upgrade.advance()
        if self._upgrade.handed_over:
            self._leave_to_successor()
        else:
            self._leave()
        return 0

    def due_us(self) -> int:
        due_us = min(
            self._look_at_us,
            self._addresses.due_us(),
            self._watchdog_at_us,
            self._agent_due_us(),
            self._trace_out.due_us(),
        )
        if self.loop.decided:
            due_us = min(due_us, self._published_us + _VIEW_PAUSE_US)
        if self._stop_by_us:
            due_us = min(due_us, self.loop.last_us + 10_000)
        return due_us

    def _agent_due_us(self) -> int:
        if self._old_agent_by_us:
            return self.loop.last_us + 50_000
        return self._agent.due_us()

    def run_due(self, now_us: int) -> None:
        """What is due of all that is not the protocol."""
        for k, reason in self._addresses.look_after(now_us):
            self.loop.feed(AddressesAdded(k, False, reason), now_us)
        self._look_after_agent(now_us)
        self._trace_out.advance(now_us)
        if now_us >= self._look_at_us:
            self._look_at_us = now_us + _LOOK_EVERY_US
            self._reopen_links()
            self._kernel.look()
            self._tallies.look(now_us)
            self._publish(now_us)
        elif self.loop.decided and now_us >= self._published_us + _VIEW_PAUSE_US:
            self._publish(now_us)
        if now_us >= self._watchdog_at_us:
            self._watchdog_at_us = now_us + self._watchdog_us
            self._parts.notifier.notify("WATCHDOG=1")
        if self._stop_by_us:
            self._judge_stop(now_us)

    def _look_soon(self) -> None:
        self._look_at_us = min(self._look_at_us, self.loop.last_us)

    def _reopen_links(self) -> None:
        links = self._parts.links
        for link in links.reopen():
            self.loop.watch_link(link)
        for link in range(len(links)):
            fault = links.fault(link)
            if fault != self._link_faults.get(link, ""):
                self._link_faults[link] = fault
                self._journal.say(fault or f"link {link + 1} is open again", WARNING)

    def _publish(self, now_us: int) -> None:
        self.loop.decided = False
        self._published_us = now_us
        shown = view(self.loop.node, now_us)
        shown = msgspec.structs.replace(
            shown,
            alarms=(*shown.alarms, *self._alarms()),
            link_tallies=self._tallies.of_links(),
            peer_tallies=self._tallies.of_peers(),
        )
        self._agent.send(Published(_encode(shown)))

    def _alarms(self) -> list[AlarmView]:
        alarms = [AlarmView("host", text) for text in self._parts.complaints]
        alarms += [AlarmView("link_closed", text) for text in self._link_faults.values() if text]
        # Where others have gone on to a later revision, `revision` says what to do.
        alarms += self._tallies.alarms(behind=not may_claim(self.loop.node))
        alarms += [AlarmView("nic", text) for text in self._addresses.faults.values()]
        for fault in (self._executor.fence_fault, self._parts.fence.fault):
            if fault:
                alarms.append(AlarmView("fence_lost", fault))
        return alarms

    # -- the agent ---------------------------------------------------------------------------------

    def _look_after_agent(self, now_us: int) -> None:
        if self._old_agent_by_us:
            if not self._old_agent_gone() and now_us < self._old_agent_by_us:
                return
            self._old_agent_by_us = 0
        agent = self._agent
        agent.flush()
        if agent.look_after(now_us, self.loop.stood_us):
            self.loop.watch(agent.fileno(), self._agent_said)
            self.loop.watch(agent.pidfd, self._agent_ended)
            self._publish(now_us)
        self._tell_agent(now_us)

    def _tell_agent(self, now_us: int) -> None:
        if self._agent.up != self._agent_up:
            self._agent_up = self._agent.up
            self.loop.feed(AgentChanged(self._agent_up), now_us)

    def _agent_ended(self) -> None:
        now = self.loop.last_us
        self.loop.unwatch(self._agent.fileno())
        self.loop.unwatch(self._agent.pidfd)
        self._trace_out.drop()
        self._journal.say(self._agent.ended(now), WARNING)
        self._tell_agent(now)

    def _agent_said(self) -> None:
        now = self.loop.last_us
        for message in self._agent.receive(now):
            self._tell_agent(now)
            if isinstance(message, LocalReport):
                report, another = self._parts.freeswitch.follow(message)
                self.loop.feed(report, now)
                if another:
                    self._watch_freeswitch()
            elif isinstance(message, UpgradeRequested):
                self._begin_upgrade(message.request)
            elif isinstance(message, KeysGiven):
                self._agent.send(Answered(message.request, *use_keys(self._parts.wire, message)))
            elif isinstance(message, TraceRequested):
                self._trace_out.begin(message, now)
            elif isinstance(message, StopRequested):
                self._request_stop()
            elif isinstance(message, StageRequested):
                self._parts.wire.know(message.spec)
                self.loop.feed(message, now)
            else:
                self.loop.feed(message, now)

    def _watch_freeswitch(self) -> None:
        descriptor = self._parts.freeswitch.fileno()
        if descriptor >= 0:
            self.loop.watch(descriptor, self._freeswitch_ended)

    def _freeswitch_ended(self) -> None:
        descriptor = self._parts.freeswitch.fileno()
        if self._parts.freeswitch.ended():
            self.loop.unwatch(descriptor)
            self.loop.feed(FreeswitchExited(), self.loop.last_us)

    def _begin_upgrade(self, request: int) -> None:
        if self._stop_by_us:
            self._agent.send(Answered(request, False, "this node is being stopped"))
        else:
            self._upgrade.begin(request)

    def _take_up(self, flip: Flip) -> None:
        """The next set of voters is decided: a new heart counts by it, or this one leaves."""
        self._executor.flip = None
        if self._stop_by_us:
            return  # a new heart would not know that it has to end
        if flip.stays:
            if not whose_turn(self.loop.node, self.loop.last_us):
                self._upgrade.begin(-1, flip)
            return  # else the core asks again
        text = f"revision {flip.revision} is in force, and this node is not in it"
        self._journal.say(f"{text}: it leaves the cluster", WARNING)
        self._request_stop()

    # -- the end -----------------------------------------------------------------------------------

    def _request_stop(self) -> None:
        if self._stop_by_us:
            return
        self._journal.say("a planned stop: services are handed over first")
        self._parts.notifier.notify("STOPPING=1")
        self._stop_by_us = self.loop.last_us + STOP_US
        self._upgrade.give_up("this node is being stopped")
        self.loop.feed(StopRequested(), self.loop.last_us)

    def _judge_stop(self, now_us: int) -> None:
        """Leave once nothing is held, the releases had time to be heard, and the takers spoke."""
        node = self.loop.node
        if stopped(node) and not self._released_us:
            self._released_us = now_us
        if self._released_us:
            spread_us = self._released_us + 4 * node.spec.timing.heartbeat_us
            awaited = any(service.holding for service in node.services)
            if now_us >= spread_us and (not awaited or now_us >= self._released_us + _LINGER_US):
                self._running = False
        if now_us >= self._stop_by_us:
            self._journal.say("not everything could be handed over in time", WARNING)
            self._running = False

    def _leave(self) -> None:
        """Close, remove, end the agent. The fence stays while FreeSWITCH may still send."""
        parts = self._parts
        services = range(len(self.loop.node.services))
        parts.fence.close(services)
        stuck = [failure for k in services if (failure := parts.addresses.remove(k))]
        parts.agent.stop(_AGENT_STOP_S)
        speaking = any(service.holding for service in self.loop.node.services)
        if stuck:
            text = f"the fence stays loaded, an address could not be removed: {stuck[0]}"
            self._journal.say(text, WARNING)
        elif speaking and parts.freeswitch.pid:
            self._journal.say(
                "the fence stays loaded: FreeSWITCH still has calls of services that may live "
                "elsewhere now; end it, then start haclusterd again or delete the table",
                WARNING,
            )
        else:
            try:
                parts.fence.unload()
            except HeartError as error:
                self._journal.say(str(error), WARNING)
        parts.links.close()

    def _leave_to_successor(self) -> None:
        """Everything is the new heart's now: touch nothing, end the agent, go."""
        pid = self._upgrade.successor_pid
        self._parts.fence.hand_on()
        self._parts.notifier.notify(f"MAINPID={pid}")
        self._journal.say(f"upgrade: the heart with pid {pid} has taken over")
        self._parts.agent.stop(_AGENT_STOP_S)

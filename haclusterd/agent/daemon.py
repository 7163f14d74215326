"""Puts the agent's parts together, takes what heart says, and reports back.

Order of the start: heart's socket first, because a word within its patience counts more than
anything else; replication and ESL next, so that a takeover finds them warm; then the interfaces.
A part that cannot start is tried again and said aloud; the others go on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from haclusterd.agent.answers import Answers
from haclusterd.agent.api import Api, ApiError
from haclusterd.agent.assembly import local_switch, why_without
from haclusterd.agent.clock import now_us
from haclusterd.agent.commands import Commands
from haclusterd.agent.comparison import Comparison
from haclusterd.agent.facts import facts_of
from haclusterd.agent.freeswitch import FreeswitchLife
from haclusterd.agent.health import NodeHealth
from haclusterd.agent.heart_link import HeartLink
from haclusterd.agent.history import History
from haclusterd.agent.movers import Movers
from haclusterd.agent.notices import Notices
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.orders import Orders
from haclusterd.agent.peers import Peers
from haclusterd.agent.promised import Promised
from haclusterd.agent.publishing import Publishing
from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.renewal import Renewal
from haclusterd.agent.replication import AgentReplicator, mesh_config
from haclusterd.agent.reports import Reports
from haclusterd.agent.services import Services
from haclusterd.agent.shared import shared_with
from haclusterd.agent.standing import judge
from haclusterd.agent.syncing import tell_repairs
from haclusterd.agent.traces import Traces
from haclusterd.agent.upkeep import Upkeep
from haclusterd.agent.voters import Voters
from haclusterd.config import Config, cluster_spec
from haclusterd.config.revisions import Start
from haclusterd.core.actions import (
    Answered,
    Decided,
    EndCalls,
    InForce,
    Persist,
    Published,
    Recover,
    Relinquish,
    ToAgent,
    TracePart,
)
from haclusterd.core.inputs import LocalReport
from haclusterd.core.view import View
from haclusterd.lasting import lasting, unending
from haclusterd.sync.transport import SyncError
from haclusterd.trace.folder import NAME as TRACES_NAME

log = logging.getLogger(__name__)

REPORT_S = 0.5
REPORT_PAUSE_S = 0.002  # changes that come together make one report
TRY_AGAIN_S = 0.5
TRY_AGAIN_MAX_S = 5.0
STOP_S = 1.5  # an upgraded heart starts the next agent once this one is gone

_view_decoder = msgspec.msgpack.Decoder(View)


class Agent:
    """One agent process. `run` returns when heart is gone or `stop` was called."""

    def __init__(self, config: Config, heart_fd: int, begun: Start | None = None) -> None:
        self.config = config
        self.spec = cluster_spec(config)
        self.history = History()
        self.reports = Reports(config.state_dir)
        self.link = HeartLink(heart_fd, self._take)
        self.operators = Operators(self.spec, self.history, lambda: self._view, self.link.send)
        self.orders = Orders(
            self.spec, config.state_dir, lambda: self._view, self.operators.ask, self.link.send
        )
        self.problems: dict[str, str] = {}  # what does not run, by part
        self.voters = Voters(begun or Start(config), self.view, self.operators.ask, self.problems)
        self.upkeep = Upkeep(self)
        self.traces = Traces(self.spec, config.state_dir / TRACES_NAME, self.link.send)
        self.replicator = self._make_replicator()
        self.movers = Movers(config, self.link.send, self.history, self.changed)
        self.recoveries = Recoveries(
            self.spec, self.replicator, self.history, self.reports, self.movers.ended,
            config.recovery, lambda: why_without(config, self.problems),
        )  # fmt: skip
        self.services = Services(
            self.spec, self.replicator, self.history, self.recoveries, self.changed
        )
        self.shared = shared_with(
            self.spec, self.replicator, self.services.busy, config.recovery.registrations
        )
        self.comparison = Comparison(self.me, self.spec.services, self.history, self.changed)
        self.publishing = Publishing(self.me, self.history, self.replicator, self.recoveries.crier)
        self.events = self.publishing.book
        self.renewal = Renewal(config, self.replicator, self.events, self.history)
        self.answers = Answers(self)
        self.notices = Notices(config, self.answers, self.changed)
        self.health = NodeHealth(
            config, lambda: self._view, self.history, self.changed,
            lambda: self.peers.words if self.peers is not None else {}, self.operators.switchover,
        )  # fmt: skip
        self.life: FreeswitchLife | None = None
        self.peers: Peers | None = None
        self._view: View | None = None
        self._packed_view = b""
        self._view_taken: asyncio.Handle | None = None
        self._orphaned_us: dict[str, int] = {}
        self._report: LocalReport | None = None
        self._reported_us = 0
        self._news = asyncio.Event()
        self._promised = Promised(self.spec, config.state_dir, self.problems)
        self._tasks: list[asyncio.Task[None]] = []
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._api: Api | None = None

    # -- life --

    async def run(self) -> str:
        """Run until heart is gone or `stop`; why it ended."""
        self.link.start()
        self._make_life()
        self.orders.load()  # before heart may count on this node for anything
        self._send_report()
        self.renewal.take()
        self._tasks = [lasting(self._report_for_ever(), "local report")]
        self.voters.aside(self.voters.started())
        self._tasks.append(unending(self.voters.watch, "files of this host"))
        self._keep_trying("replication", self._start_replication)
        if self.life is not None:
            self._keep_trying("freeswitch", self._start_freeswitch)
        self.notices.start()
        self.health.start()
        self.upkeep.start()
        self._stops += [self.traces.stop, self.orders.stop, self.notices.stop, self.upkeep.stop]
        self._stops += [self.health.stop, self.movers.stop]
        self._api = Api(self.config.api.socket, Commands(self.answers))
        self._keep_trying("api", self._api.start)
        if self.config.api.http_port:
            self._keep_trying("http", self._start_http)
        reason = await self.link.gone
        try:
            await asyncio.wait_for(self._stop_all(), STOP_S)
        except TimeoutError:
            log.warning("not everything stopped within %.1f s", STOP_S)
        self.renewal.leave()
        return reason

    def stop(self) -> None:
        """End soon."""
        if not self.link.gone.done():
            self.link.gone.set_result("stopped")

    async def _stop_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._api is not None:
            await self._api.stop()  # its socket must not stay behind, whatever else takes long
        more = (self.services.stop, self._promised.stop, self.voters.stop)
        for stop in (*reversed(self._stops), *more):
            try:
                await stop()
            except Exception:
                log.exception("a part did not stop in order")  # the others do
        self.link.close()

    def _keep_trying(self, part: str, start: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(lasting(self._until_started(part, start), f"the start of {part}"))

    async def _until_started(self, part: str, start: Callable[[], Awaitable[None]]) -> None:
        from haclusterd.agent.http import HttpError
        from haclusterd.agent.switch import SwitchError

        pause_s = TRY_AGAIN_S
        while True:
            try:
                await start()
            except (SyncError, SwitchError, ApiError, HttpError) as error:
                if self.problems.get(part) != str(error):
                    self.problems[part] = str(error)
                    log.error("%s", error)
                    self.changed()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, TRY_AGAIN_MAX_S)
            except Exception:
                self.problems[part] = f"{part} failed inside haclusterd; see its log (journalctl)"
                self.changed()
                raise
            else:
                self.problems.pop(part, None)
                self.changed()
                return

    # -- parts --

    def _make_replicator(self) -> AgentReplicator | None:
        if len(self.spec.nodes) < 2:
            return None
        try:
            return AgentReplicator(mesh_config(self.config), time.time_ns() // 1_000_000)
        except SyncError as error:
            # Heart needs the cluster's key only: it beats, and says nothing of certificates.
            self.problems["replication"] = f"{error}; then run `haclusterctl upgrade` here"
            log.error("%s", self.problems["replication"])
            return None

    async def _start_replication(self) -> None:
        replicator = self.replicator
        if replicator is None:
            if "replication" in self.problems:
                raise SyncError(self.problems["replication"])
            return
        await replicator.start()
        self._stops.append(replicator.stop)
        replicator.on_change(lambda fresh: self.changed())
        tell_repairs(replicator, self.history, self.me)
        self.operators.join(replicator)
        self.notices.join(replicator)
        self.orders.join(replicator)
        self.upkeep.join(replicator)
        others = [node.id for node in self.spec.nodes if node.id != self.me]
        self.peers = Peers(
            others, replicator, self.answers.word, self.orders.heard, self.comparison
        )
        self.peers.awaited = self.upkeep.awaited.heard
        await self.peers.start()
        await self.publishing.start(others, replicator)
        self._stops += [self.peers.stop, self.publishing.stop]

    def _make_life(self) -> None:
        section = self.config.freeswitch
        if section is not None and not self.config.node.witness:
            self.life = FreeswitchLife(
                section, self.spec.services, self.history, self.link.send, self.changed,
                self.services.freeswitch_exited,
            )  # fmt: skip

    async def _start_freeswitch(self) -> None:
        section, life = self.config.freeswitch, self.life
        if section is None or life is None:
            return
        if section.esl_port:
            from haclusterd.agent.local_switch import read_password

            password = read_password(section)  # first: nothing is begun where there is none
            switch = local_switch(
                self.config, section, self.spec, life, self.services, self.recoveries,
                self.comparison.read,
            )  # fmt: skip
            life.switch = self.services.switch = self.operators.switch = switch
            if self._view is not None:
                self.services.observe(self._view)
            else:
                for service in self.spec.services:
                    switch.set_fenced(service.name, True)
            await switch.start()
            self._stops.append(switch.stop)
            await self.health.sensors.attach(switch.connection)
            self._stops.append(self.health.sensors.detach)
            if self.shared is not None:
                self._stops.append(self.shared.stop)
                all_calls = self.services.all_calls
                await self.shared.start(section, switch.connection, password, all_calls)
        await life.start()
        self._stops.append(life.stop)

    async def _start_http(self) -> None:
        from haclusterd.agent.http import Http

        api = self.config.api
        http = Http(api.http_host, api.http_port, self.answers, api.hosts)
        await http.start()
        self._stops.append(http.stop)

    # -- what heart says --

    def _take(self, message: ToAgent) -> None:
        match message:
            case Published():
                self._packed_view = message.view
                if self._view_taken is None:  # soon, and only the newest: orders come first
                    self._view_taken = asyncio.get_running_loop().call_soon(self._take_view)
            case Decided():
                self._decided(message)
            case Recover():
                self.movers.recover(message)
                self._take_view()  # what heart saw before tells when the fault was
                self.services.recover(message)
                if self.shared is not None:
                    self.shared.recover(message.service, message.identity.epoch)
            case EndCalls():
                self._take_view()
                self.services.end_calls(message)
            case Persist():
                self._promised.keep(message)
            case Relinquish():
                self.operators.relinquish(message)
            case Answered():
                self.operators.answered(message)
            case InForce():
                self.voters.aside(self.voters.in_force(message.revision))
            case TracePart():
                self.traces.take(message)

    def _take_view(self) -> None:
        if self._view_taken is not None:
            self._view_taken.cancel()
            self._view_taken = None
            self._published(self._packed_view)

    def _published(self, packed: bytes) -> None:
        try:
            view = _view_decoder.decode(packed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("heart's view is not readable: %s", error)
            return
        self._view = view
        for service in view.services:
            if service.owner:
                self._orphaned_us.pop(service.name, None)
            else:
                self._orphaned_us.setdefault(service.name, now_us())
        if self.replicator is not None:
            self.replicator.take_view(view)
        self.services.observe(view)
        self.orders.observe(view)
        self.events.seen(view.at_us)
        self.movers.observe(view)
        if self.shared is not None:
            self.shared.observe(view)
        self.changed()

    def _decided(self, message: Decided) -> None:
        services = self.spec.services
        name = services[message.service].name if 0 <= message.service < len(services) else None
        self.history.add(message.row, message.text, message.at_us, name, message.epoch)
        self.traces.decided(message)

    # -- what this node says --

    @property
    def me(self) -> str:
        return self.config.node.id

    def changed(self) -> None:
        """Something that heart should hear of may have changed."""
        self._news.set()
        self.upkeep.drains.poke()

    async def _report_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._news.wait()
                await asyncio.sleep(REPORT_PAUSE_S)
            self._news.clear()
            self._send_report()

    def _send_report(self) -> None:
        """Send what changed; an unchanged word is repeated, because it says that we live."""
        report = judge(self.spec, facts_of(self, self._orphaned_us))
        due = now_us() - self._reported_us >= int(REPORT_S * 900_000)
        if due or report != self._report:
            self._report = report
            self._reported_us = now_us()
            self.link.send(report)

    def owners(self) -> dict[str, tuple[str, int]]:
        """(owner, epoch) by service; owner empty while nobody has it."""
        services = self._view.services if self._view is not None else ()
        return {s.name: (s.owner, s.epoch) for s in services}

    # -- what others see --

    @property
    def last_report(self) -> LocalReport | None:
        """What heart was told last."""
        return self._report

    def view(self) -> View:
        """Heart's newest word. Raises OperatorError before the first."""
        if self._view is None:
            raise OperatorError("heart has not told its view yet: try again in a second")
        return self._view

"""What can be asked over the API: one function per command, from parameters to a result.

The Unix socket and HTTP both come here; neither knows what a command means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import msgspec

from haclusterd.agent import capacity, risks, schema, status
from haclusterd.agent.clock import wall_text_ms
from haclusterd.agent.events import Book
from haclusterd.agent.failover import Failover
from haclusterd.agent.history import History
from haclusterd.agent.maintaining import Maintaining
from haclusterd.agent.metrics import Outside
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.orders import Orders
from haclusterd.agent.page import brief
from haclusterd.agent.parameters import checked
from haclusterd.agent.registrations import Listed
from haclusterd.agent.reports import Reports
from haclusterd.agent.rotation import Rotation
from haclusterd.agent.schema_upkeep import KeysAt
from haclusterd.agent.traces import Traces
from haclusterd.core.model import FOR_GOOD_US, ClusterSpec
from haclusterd.core.records import CallRecord
from haclusterd.core.view import View
from haclusterd.freeswitch.registrations import wall_s
from haclusterd.freeswitch.risks import Ringing
from haclusterd.trace.folder import Saved

MISFITS_SHOWN = 50
SLICE = 64  # calls (2 ms) between two turns of the event loop


class Source(Protocol):
    """What the daemon tells the API."""

    @property
    def history(self) -> History: ...
    @property
    def events(self) -> Book: ...
    @property
    def reports(self) -> Reports: ...
    @property
    def operators(self) -> Operators: ...
    @property
    def orders(self) -> Orders: ...
    @property
    def maintaining(self) -> Maintaining: ...
    @property
    def failover(self) -> Failover: ...
    @property
    def rotation(self) -> Rotation: ...
    @property
    def traces(self) -> Traces: ...

    @property
    def spec(self) -> ClusterSpec: ...

    def view(self) -> View: ...
    def status(self) -> schema.Status: ...
    def closed(self) -> dict[str, str]: ...
    def about(self) -> schema.About: ...
    def sync(self) -> Any: ...
    def calls_here(self) -> Iterator[tuple[str, str, CallRecord]]: ...
    def at_risk(self) -> list[str]: ...
    def service_risks(self) -> dict[str, str]: ...
    async def ringing(self) -> list[tuple[str, Ringing]]: ...
    def registrations(self) -> Iterator[Listed]: ...
    def heart_silent(self) -> str: ...
    def not_ready(self) -> str: ...
    def stale(self) -> bool: ...
    def counters(self) -> dict[str, int]: ...
    def known_reports(self) -> list[schema.Report]: ...
    def outside(self) -> Outside: ...
    def certificate_ends(self) -> dict[str, float]: ...
    def health_reasons(self) -> list[str]: ...


Command = Callable[[dict[str, Any]], Awaitable[Any]]


def span_us(seconds: int | None) -> int:
    """A length of time in us; None: without an end."""
    return FOR_GOOD_US if seconds is None else seconds * 1_000_000


class Commands:
    """`table` maps method names to what they do. All raise OperatorError with the reason."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.table: dict[str, Command] = {
            "status": self._status,
            "about": self._about,
            "rank": self._rank,
            "history": self._history,
            "report": self._report,
            "reports": self._reports,
            "calls": self._calls,
            "registrations": self._registrations,
            "sync": self._sync,
            "capacity": self._capacity,
            "best_node": self._best_node,
            "switchover": self._switchover,
            "failover_check": self._failover_check,
            "failover": self._failover,
            "maintenance": self._maintenance,
            "drain": self._drain,
            "undrain": self._undrain,
            "pause": self._pause,
            "resume": self._resume,
            "mark_dead": self._mark_dead,
            "unmark": self._unmark,
            "keys_rotate": self._keys_rotate,
            "keys_abort": self._keys_abort,
            "keys_status": self._keys_status,
            "upgrade": self._upgrade,
            "reload": self._reload,
            "trace": self._trace,
            "trace_save": self._trace_save,
            "trace_list": self._trace_list,
            "trace_read": self._trace_read,
        }

    @property
    def events(self) -> Book:
        """The events of all nodes."""
        return self._source.events

    async def run(self, method: str, params: dict[str, Any]) -> Any:
        """The result of one command. Raises OperatorError."""
        command = self.table.get(method)
        if command is None:
            known = ", ".join(sorted(self.table))
            raise OperatorError(f"unknown method {method[:64]!r}; known: {known}", schema.USAGE)
        return await command(checked(method, params))

    async def _status(self, params: dict[str, Any]) -> schema.Status:
        return self._source.status()

    async def _about(self, params: dict[str, Any]) -> schema.About:
        return self._source.about()

    async def _rank(self, params: dict[str, Any]) -> schema.Rank:
        return status.rank(self._source.view(), self._source.stale(), self._source.health_reasons())

    async def _history(self, params: dict[str, Any]) -> list[schema.Decision]:
        return self._source.history.last(params["count"])

    async def _report(self, params: dict[str, Any]) -> schema.Report:
        which = params["which"]
        try:
            found = self._source.reports.find(which)
        except KeyError as error:
            if which != "last" and not which.isdecimal():
                self._source.operators.check_names(which, None)
            elsewhere = self._elsewhere()
            where = f" on this node; {elsewhere}" if elsewhere else ""
            raise OperatorError(f"{error.args[0]}{where}") from None
        if which.isdecimal():
            return found
        return msgspec.structs.replace(found, newer=self._elsewhere(found))

    def _elsewhere(self, after: schema.Report | None = None) -> str:
        """Where the newest takeover that another node told of is reported in full, or empty;
        `after`: of this service and later, by epochs, as the nodes' clocks may differ."""
        spec = self._source.spec
        told = [r for r in self._source.known_reports() if r.to != spec.nodes[spec.me].id]
        told.sort(key=lambda report: report.at)
        if after is not None:
            told = [r for r in told if r.service == after.service and r.epoch > after.epoch]
            told.sort(key=lambda report: report.epoch)
        if not told:
            return ""
        last = told[-1]
        return (
            f"{last.service} moved to {last.to} at {last.at}: "
            f"`haclusterctl report {last.number}` on {last.to}"
        )

    async def _reports(self, params: dict[str, Any]) -> list[schema.Report]:
        """Of all nodes that told, oldest first."""
        return sorted(map(brief, self._source.known_reports()), key=lambda report: report.at)

    async def _calls(self, params: dict[str, Any]) -> schema.CallList:
        limit = params["limit"]
        only_risk = params["at_risk"]
        waiting, lonely = set(self._source.at_risk()), self._source.service_risks()
        calls: list[schema.Call] = []
        total = at_risk = 0
        for at, (service, here, record) in enumerate(self._source.calls_here()):
            if at % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            why = risks.why(record, here, record.uuid in waiting, lonely.get(service, ""))
            at_risk += bool(why)
            if only_risk and not why:
                continue
            total += 1
            if len(calls) < limit:
                calls.append(_call(service, here, record, why))
        for service, leg in await self._source.ringing() if only_risk else ():
            total, at_risk = total + 1, at_risk + 1
            if len(calls) < limit:
                calls.append(_ringing(service, leg))
        return schema.CallList(total, at_risk, calls, self._source.stale())

    async def _registrations(self, params: dict[str, Any]) -> schema.RegistrationList:
        limit = params["limit"]
        found: list[schema.Registration] = []
        total = at_risk = 0
        now_s = wall_s()
        for at, listed in enumerate(self._source.registrations()):
            if at % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            total += 1
            at_risk += listed.at_risk
            if len(found) < limit:
                found.append(_registration(listed, now_s))
        return schema.RegistrationList(total, at_risk, found, self._source.stale())

    async def _sync(self, params: dict[str, Any]) -> Any:
        return self._source.sync()

    async def _capacity(self, params: dict[str, Any]) -> schema.Capacity:
        fail = params["fail"]
        view = self._source.view()
        seen, bad = 0, []
        for case in capacity.cases(view, self._source.spec, fail):
            seen += 1
            if not capacity.fits(case):
                bad.append(case)
            if seen % SLICE == 0:
                await asyncio.sleep(0)
        return schema.Capacity(fail, seen, len(bad), not bad, bad[:MISFITS_SHOWN])

    async def _best_node(self, params: dict[str, Any]) -> list[schema.BestNode]:
        return best_nodes(self._source)

    async def _switchover(self, params: dict[str, Any]) -> schema.Done:
        to = params["to"] or None
        return schema.Done(await self._source.operators.switchover(params["service"], to))

    async def _failover_check(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.failover.check(params["service"], params["to"]))

    async def _failover(self, params: dict[str, Any]) -> schema.Done:
        service, to, by = params["service"], params["to"], params["by"]
        return schema.Done(await self._source.failover.act(service, to, by))

    async def _maintenance(self, params: dict[str, Any]) -> schema.Done:
        on, drain_s = params["on"], params["drain_s"]
        if not on and (params["for_s"] or drain_s):
            raise OperatorError("'for_s' and 'drain_s' belong to 'on': true", schema.USAGE)
        if drain_s and not params["by"]:
            raise OperatorError("maintenance with 'drain_s' needs parameter 'by'", schema.USAGE)
        move_us = None if drain_s is None else span_us(drain_s)
        left_us, by = span_us(params["for_s"]), params["by"] or "an operator"
        return schema.Done(
            await self._source.maintaining.maintenance(on, params["node"], left_us, move_us, by)
        )

    async def _drain(self, params: dict[str, Any]) -> schema.Done:
        target, left_us = params["target"], span_us(params["for_s"])
        return schema.Done(await self._source.maintaining.drain(target, left_us, params["by"]))

    async def _undrain(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.maintaining.undrain(params["target"], params["by"]))

    async def _pause(self, params: dict[str, Any]) -> schema.Done:
        left_us = span_us(params["for_s"])
        return schema.Done(await self._source.orders.pause(left_us, params["by"]))

    async def _resume(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.orders.resume(params["by"]))

    async def _mark_dead(self, params: dict[str, Any]) -> schema.Done:
        node, by = params["node"], params["verified_by"]
        return schema.Done(await self._source.orders.mark_dead(node, by))

    async def _unmark(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.orders.unmark(params["node"], params["by"]))

    async def _keys_rotate(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.rotation.rotate(params["by"]))

    async def _keys_abort(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.rotation.abort(params["by"]))

    async def _keys_status(self, params: dict[str, Any]) -> list[KeysAt]:
        return await self._source.rotation.status()

    async def _upgrade(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.operators.upgrade())

    async def _reload(self, params: dict[str, Any]) -> schema.Done:
        return schema.Done(await self._source.operators.reload(params["without_majority"]))

    async def _trace(self, params: dict[str, Any]) -> schema.TraceContent:
        """The recording as it is now, or only the present state (`whole` false)."""
        return schema.TraceContent(await self._source.traces.fetch(params["whole"]))

    async def _trace_save(self, params: dict[str, Any]) -> Saved:
        return await self._source.traces.save()

    async def _trace_list(self, params: dict[str, Any]) -> list[Saved]:
        return await self._source.traces.listed()

    async def _trace_read(self, params: dict[str, Any]) -> schema.TraceContent:
        return schema.TraceContent(await self._source.traces.named(params["name"]))


def best_nodes(source: Source) -> list[schema.BestNode]:
    """Nodes for new calls, the best first. Raises OperatorError where there is none, or where what
    this node knows is old."""
    if silent := source.heart_silent():
        raise OperatorError(silent)
    found = capacity.best_nodes(source.view(), source.closed())
    if not found:
        raise OperatorError("no node can take a call: none serves anything and has room")
    return found


def _registration(listed: Listed, now_s: float) -> schema.Registration:
    record = listed.record
    return schema.Registration(
        user=f"{record.user}@{record.host}",
        contact=record.contact,
        node=listed.node or None,
        service=listed.service,
        profile=record.profile,
        here=listed.here,
        expires=wall_text_ms(record.expires_s * 1000) or "",
        expires_s=max(0, round(record.expires_s - now_s)),
        replicated=not listed.at_risk,
        user_agent=record.user_agent,
        network=f"{record.network_ip}:{record.network_port}" if record.network_ip else "",
    )


def _ringing(service: str, leg: Ringing) -> schema.Call:
    return schema.Call(
        uuid=leg.uuid,
        service=service,
        here="ringing",
        direction=leg.direction,
        partner=None,
        answered=None,
        version=0,
        at_risk=True,
        why=["ringing: only answered calls can be taken over"],
    )


def _call(service: str, here: str, record: CallRecord, why: list[str]) -> schema.Call:
    return schema.Call(
        uuid=record.uuid,
        service=service,
        here=here,
        direction=record.direction,
        partner=record.partner or None,
        answered=wall_text_ms(record.answered_ms),
        version=record.version,
        at_risk=bool(why),
        why=why,
    )

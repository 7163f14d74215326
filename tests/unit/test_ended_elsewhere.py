"""A call that had ended is not recovered because only a third node was told of it (S8).

That node is asked before anything is injected, the first legs included; what it tells too late
ends the call again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from haclusterd.agent import latecomers
from haclusterd.agent.history import History
from haclusterd.agent.recoveries import COLLECT_MS, HEAD_LEGS, Recoveries
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.reports import Reports
from haclusterd.agent.resurrected import LOOK_MAX_S
from haclusterd.agent.services import Services
from haclusterd.agent.switch import SwitchError
from haclusterd.core.actions import Recover
from haclusterd.core.model import Identity
from haclusterd.core.records import CallRecord, CallVerdict, Tombstone
from haclusterd.freeswitch.rest import Rest
from haclusterd.sync.codec import Message
from haclusterd.sync.replicator import Replicator
from tests.fixtures.agent_parts import FakeReplication, FakeSwitch
from tests.unit.sync_cluster import Cluster, asks, call, held, until
from tests.unit.test_newer_elsewhere import renamed, two_slaves

pytestmark = pytest.mark.timeout(60)
CALLS = 12


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in list(made.running):
        await made.kill(node)


class Switch(FakeSwitch):
    """Remembers what went in first, and takes its time."""

    def __init__(self, takes_s: float) -> None:
        super().__init__()
        self.takes_s = takes_s
        self.head: dict[str, int] = {}
        self.whole: dict[str, int] = {}

    async def recover(
        self, service: str, profiles: Sequence[str], records: Sequence[CallRecord],
        progress: Any, epoch: int, outage_began: float | None, rest: Rest | None = None,
    ) -> list[CallVerdict]:  # fmt: skip
        if rest is not None:
            first = await rest.still_true(records)
            self.head = {record.uuid: record.version for record in first}
            records = await rest()
        self.whole |= {record.uuid: record.version for record in records}
        await asyncio.sleep(self.takes_s)
        return await super().recover(service, profiles, records, progress, epoch, outage_began)

    @property
    def ended(self) -> list[str]:
        found = [uuids for what, *uuids in self.done if what == "end_resurrected"]
        return [uuid for _, group in found for uuid in group]


class Takeover:
    """b takes over from a, of which c has heard more."""

    def __init__(self, b: AgentReplicator, folder: Path, takes_s: float = 0.0) -> None:
        self.switch = Switch(takes_s)
        history = History()
        self.reports = Reports(folder)
        work = Recoveries(renamed(), b, history, self.reports, lambda message: None)
        self.services = Services(renamed(), b, history, work, lambda: None)
        self.services.switch = self.switch

    async def run(self) -> None:
        self.services.recover(Recover(0, Identity(2, 1, 99), 0, "a is silent", {"dead": 1}))
        async with asyncio.timeout(10):
            while self.services.busy("east"):
                await asyncio.sleep(0.005)
        await self.services.stop()


async def only_c_heard(
    cluster: Cluster, changes: Sequence[CallRecord | Tombstone]
) -> tuple[AgentReplicator, Replicator]:
    a, b, c = await two_slaves(cluster, CALLS)
    a.mesh.sessions["b"].sources.clear()  # b hears no more changes
    a.append([*changes, call(99)])
    await until(lambda: "uuid-99" in held(c))
    b.observe({"east": ("a", 1)}, ["b", "c"])
    await cluster.kill("a")
    return b, c


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.05)


async def test_s8_not_even_the_first_legs_go_in_before_the_others_were_asked(
    cluster: Cluster, tmp_path: Path
) -> None:
    """All that would go first has ended, or has changed since."""
    gone = [f"uuid-{n}" for n in range(HEAD_LEGS - 1)]
    changed = HEAD_LEGS - 1
    b, _ = await only_c_heard(cluster, [*(Tombstone("east", u, 2) for u in gone), call(changed, 2)])
    assert {r.uuid for r in b.quietest("east", HEAD_LEGS)} == {*gone, f"uuid-{changed}"}
    takeover = Takeover(b, tmp_path)
    await takeover.run()
    switch = takeover.switch
    assert not set(gone) & (switch.head.keys() | switch.whole.keys())
    assert switch.head.get(f"uuid-{changed}", 2) == switch.whole[f"uuid-{changed}"] == 2
    assert len(switch.whole) == CALLS - len(gone) + 1
    assert switch.ended == []


async def test_e1_what_nobody_knows_better_still_goes_first(
    cluster: Cluster, tmp_path: Path
) -> None:
    b, _ = await only_c_heard(cluster, [])
    takeover = Takeover(b, tmp_path)
    await takeover.run()
    assert len(takeover.switch.head) == HEAD_LEGS


def slow(node: Replicator, by_s: float) -> None:
    """Its questions to c are on their way for so long."""
    session, loop = node.mesh.sessions["c"], asyncio.get_running_loop()
    send = session.send

    def later(message: Message) -> None:
        if asks(message):
            loop.call_later(by_s, send, message)
        else:
            send(message)

    session.send = later  # type: ignore[method-assign]


@pytest.mark.parametrize("takes_s", [0.0, 0.6], ids=["after the verdicts", "during the recovery"])
async def test_s8_a_node_that_tells_too_late_ends_the_call(
    cluster: Cluster, tmp_path: Path, takes_s: float
) -> None:
    b, _ = await only_c_heard(cluster, [Tombstone("east", "uuid-0", 2)])
    slow(b, COLLECT_MS / 1000 + 0.3)
    takeover = Takeover(b, tmp_path, takes_s)
    await takeover.run()
    assert "uuid-0" in takeover.switch.head, "nobody had told"
    assert takeover.switch.ended == ["uuid-0"]


async def test_s8_what_freeswitch_had_no_time_to_end_is_ended_a_moment_later(
    cluster: Cluster, tmp_path: Path
) -> None:
    class Busy(Switch):
        failures = 2

        async def end_resurrected(self, service: str, uuids: Sequence[str]) -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise SwitchError("FreeSWITCH does not answer")
            await super().end_resurrected(service, uuids)

    b, _ = await only_c_heard(cluster, [Tombstone("east", "uuid-0", 2)])
    slow(b, COLLECT_MS / 1000 + 0.3)
    takeover = Takeover(b, tmp_path)
    takeover.services.switch = takeover.switch = Busy(0.0)
    await takeover.run()
    assert takeover.switch.ended == ["uuid-0"]


async def test_s8_a_freeswitch_that_ends_nothing_does_not_hold_the_recovery_up_for_ever(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.resurrected.TRIES", 3)
    tried: list[str] = []

    class Broken(Switch):
        async def end_resurrected(self, service: str, uuids: Sequence[str]) -> None:
            tried.extend(uuids)
            raise SwitchError("FreeSWITCH does not answer")

    b, _ = await only_c_heard(cluster, [Tombstone("east", "uuid-0", 2)])
    slow(b, COLLECT_MS / 1000 + 0.3)
    takeover = Takeover(b, tmp_path)
    takeover.services.switch = Broken(0.0)
    await takeover.run()
    assert tried == ["uuid-0"] * 3


@pytest.mark.parametrize("late", [False, True], ids=["unpacked at first", "unpacked later"])
async def test_s8_what_is_told_while_the_calls_are_unpacked_ends_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """It came when they had been looked up, and before they were on the list of what went in."""
    monkeypatch.setattr(latecomers, "PAUSE_S", 0.01)
    known = Slow(late)
    switch, history = FakeSwitch(), History()
    work = Recoveries(renamed(), known, history, Reports(tmp_path), lambda message: None)
    services = Services(renamed(), known, history, work, lambda: None)
    services.switch = switch
    services.recover(Recover(0, Identity(2, 1, 99), 0, "a is silent", {"dead": 1}))
    async with asyncio.timeout(10):
        while services.busy("east"):
            await asyncio.sleep(0.005)
    await services.stop()
    assert [uuids for what, *uuids in switch.done if what == "end_resurrected"] == [
        ["east", ("uuid-9",)]
    ]


class Slow(FakeReplication):
    """Unpacks call 9 for a while, at first or for who is late; in that time c tells of its end."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late_one = late
        self.has_told = False

    def quietest(self, service: str, count: int) -> list[CallRecord]:
        return []

    async def _unpack(self) -> list[CallRecord]:
        await asyncio.sleep(0.05)
        self.has_told = True
        await asyncio.sleep(2 * LOOK_MAX_S)
        return [call(9)]

    async def unrecovered(self, service: str) -> list[CallRecord]:
        if self.has_told or self.late_one:
            return []
        return await self._unpack()

    async def inherited(self, service: str, but: Collection[str] = ()) -> list[CallRecord]:
        return [] if self.has_told else await self._unpack()

    def unasked(self, service: str, without: Collection[str] = ()) -> list[str]:
        return [] if self.has_told else ["c"]

    async def ask(self, service: str, timeout_ms: int, without: Collection[str] = ()) -> None:
        await asyncio.sleep(0)

    def ended(self, service: str, uuids: Collection[str]) -> set[str]:
        return {"uuid-9"} & set(uuids) if self.has_told else set()


async def test_s8_what_this_node_buried_itself_is_no_such_news(cluster: Cluster) -> None:
    """A phone that answers after its verdict is back, though others were told of the verdict."""
    _, b, c = await two_slaves(cluster, CALLS)
    b.observe({"east": ("a", 1)}, ["b", "c"])
    c.observe({"east": ("b", 2)}, ["b", "c"])
    await cluster.kill("a")
    b.own("east", 2)
    b.append([Tombstone("east", "uuid-0", 7, "no answer")])
    await until(lambda: "uuid-0" not in held(c))
    await b.fetch("east", 500)
    assert b.store.services["east"].fetched.items["uuid-0"].dead
    assert b.ended("east", ["uuid-0", "uuid-1"]) == set()

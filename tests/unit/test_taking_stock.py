"""An agent that starts at the owner, and a FreeSWITCH that is not the one that had the calls.

Nobody else is ready in these tests, so that the service stays where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.replication import AgentReplicator
from haclusterd.agent.services import Services
from haclusterd.agent.switch import SwitchError
from haclusterd.config import RecoverySection
from haclusterd.core.actions import EndCalls
from haclusterd.core.inputs import RecoveryEnded
from haclusterd.core.model import Identity
from haclusterd.core.records import CallRecord, Tombstone
from tests.fixtures.agent_parts import record, spec, view
from tests.unit.sync_cluster import Cluster, call, held, until
from tests.unit.test_agent_services import Bench, recover, recovered
from tests.unit.test_recovery_later import LOCKED, lapsed, replaced

pytestmark = pytest.mark.timeout(20)
OWNED, ELSEWHERE = view({"east": ("fs-a", 7)}), view({"east": ("fs-b", 8)})


def refusing(bench: Bench) -> pytest.MonkeyPatch:
    """FreeSWITCH answers, but can be given no call, until `undo`."""

    async def fails(*given: Any, **named: Any) -> Any:
        raise SwitchError(LOCKED)

    patch = pytest.MonkeyPatch()
    patch.setattr(bench.switch, "recover", fails)
    return patch


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("haclusterd.agent.taking_stock.PAUSE_S", 0.01)
    monkeypatch.setattr("haclusterd.agent.taking_stock.RETRY_S", 0.01)
    monkeypatch.setattr("haclusterd.agent.again.AGAIN_S", 0.05)
    made = Bench(tmp_path)
    yield made
    await made.services.stop()


def alive(uuid: str, version: int = 1) -> CallRecord:
    """Of the process that runs now; those of `record` are of another one."""
    return msgspec.structs.replace(record(uuid, version=version), runtime_uuid="core-2")


def half(uuid: str, partner: str) -> CallRecord:
    """One leg of a bridge."""
    return msgspec.structs.replace(record(uuid), partner=partner)


async def test_e2_calls_of_an_owner_whose_agent_and_freeswitch_died_are_recovered(
    bench: Bench,
) -> None:
    """The other nodes were told that they may forget them: nobody else had them."""
    bench.replication.late = {"fs-b": [record("u1", version=3)], "fs-c": [record("u2", version=4)]}
    bench.services.observe(OWNED)
    await bench.settle()
    assert recovered(bench) == ["u1", "u2"]
    assert [r.uuid for r in bench.replication.appended] == ["u1", "u2"]
    assert bench.replication.settled == ["east"]
    report = bench.reports.find("last")
    assert (report.cause, report.calls.recovered) == ("FreeSWITCH came back", 2)
    call = next(done for done in bench.switch.done if done[0] == "recover")
    assert call[4] == 7 << 12 | 1, "another attempt than that of the takeover"


async def test_s8_calls_that_ended_without_an_agent_in_the_same_freeswitch_are_not_called_up(
    bench: Bench,
) -> None:
    bench.switch.calls_here = [alive("u1", version=9)]
    bench.replication.late = {"fs-b": [record("u1", version=3), alive("u2")]}
    bench.services.observe(OWNED)
    await bench.settle()
    assert recovered(bench) == []
    assert bench.replication.appended == [alive("u1", version=9)]
    assert bench.replication.settled == ["east"]


async def test_s9_nothing_is_forgotten_before_every_living_node_has_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.taking_stock.WAIT_S", 0.05)
    bench.replication.late = {"fs-b": [record("u1")], "fs-c": [record("u2")]}
    bench.replication.silent = {"fs-c"}
    bench.services.observe(OWNED)
    assert bench.services.busy("east") == "reading its calls"
    await until(lambda: recovered(bench) == ["u1"])
    await bench.settle()
    assert bench.services.at_rest("east"), "its SIP profiles are lifted meanwhile"
    assert bench.replication.settled == []
    bench.replication.silent = set()
    await until(lambda: bench.replication.settled == ["east"])
    assert recovered(bench) == ["u1", "u2"]


async def test_a_node_that_never_tells_does_not_keep_the_others_from_being_settled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.taking_stock.WAIT_S", 0.02)
    monkeypatch.setattr("haclusterd.agent.taking_stock.GIVE_UP_S", 0.05)
    bench.replication.late, bench.replication.silent = {"fs-c": [record("u1")]}, {"fs-c"}
    bench.services.observe(OWNED)
    await until(lambda: bench.replication.settled == ["east"])
    assert "fs-c never told which calls of east it knows" in [d.text for d in bench.history.last()]


@pytest.mark.parametrize("silent", [False, True])
async def test_e2_what_the_new_freeswitch_does_not_take_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """Also while a node is awaited that does not tell."""
    monkeypatch.setattr("haclusterd.agent.taking_stock.WAIT_S", 0.05)
    bench.replication.late = {"fs-b": [record("u1")]}
    if silent:
        bench.replication.late["fs-c"], bench.replication.silent = [], {"fs-c"}
    refusal = refusing(bench)
    bench.services.observe(OWNED)
    await until(lambda: "east" in bench.work.in_place.stranded)
    if not silent:
        await until(lambda: bench.replication.settled == ["east"])
    refusal.undo()
    await until(lambda: recovered(bench) == ["u1"])
    await until(lambda: not bench.work.in_place.stranded)


async def test_a_freeswitch_that_is_replaced_while_its_calls_are_read_is_read_again(
    bench: Bench,
) -> None:
    """Else nobody would ever settle the service."""
    bench.switch.fail = SwitchError("FreeSWITCH died")
    bench.services.observe(OWNED)
    await asyncio.sleep(0.03)
    bench.replication.late = {"fs-b": [record("u1")]}
    bench.switch.fail = None
    await bench.services.freeswitch_replaced()
    await bench.settle()
    assert recovered(bench) == ["u1"]
    assert bench.replication.settled == ["east"]


async def test_s9_an_agent_that_starts_while_the_lease_lapses_forgets_nothing(
    bench: Bench,
) -> None:
    """Rows of a fenced service are not in what is read."""
    bench.switch.hold.clear()
    bench.services.observe(OWNED)
    await asyncio.sleep(0.02)
    bench.services.observe(lapsed())
    bench.switch.hold.set()
    await bench.settle()
    assert bench.replication.settled == []
    bench.switch.calls_here = [alive("u1")]
    bench.services.observe(view({"east": ("fs-a", 9)}))
    await bench.settle()
    assert bench.replication.appended == [alive("u1")]
    assert bench.replication.settled == ["east"]


async def test_s8_a_freeswitch_that_comes_back_behind_the_fence_is_given_its_calls_later(
    bench: Bench,
) -> None:
    """No phone could answer, and a call that nobody answers for is buried. A reclaim need not
    bring an order: heart may have seen FreeSWITCH up before its lease lapsed."""
    bench.services.recover(recover())
    await bench.settle()
    bench.replication.append([record("u1", version=3)])
    bench.services.observe(lapsed())
    await bench.services.freeswitch_replaced()
    await asyncio.sleep(0.1)
    assert recovered(bench) == []
    assert not bench.services.at_rest("east")
    bench.services.observe(view({"east": ("fs-a", 9)}))
    await bench.settle()
    assert recovered(bench) == ["u1"]
    assert bench.services.at_rest("east")


async def test_s8_nor_is_a_takeover_begun_again_behind_the_fence(bench: Bench) -> None:
    bench.replication.known = [record("u1")]
    bench.switch.hold.clear()
    bench.services.recover(recover())
    await asyncio.sleep(0.02)
    bench.services.observe(lapsed())
    await bench.services.freeswitch_replaced()
    bench.switch.hold.set()
    await asyncio.sleep(0.15)
    assert recovered(bench) == []
    bench.services.observe(view({"east": ("fs-a", 9)}))
    await until(lambda: recovered(bench) == ["u1"])
    await until(lambda: RecoveryEnded(0, Identity(7, 0, 99), True) in bench.sent)


async def test_e2_what_waits_behind_the_fence_is_the_next_owners(bench: Bench) -> None:
    bench.services.recover(recover())
    await bench.settle()
    bench.replication.append([record("u1", version=3)])
    bench.services.observe(lapsed())
    await bench.services.freeswitch_replaced()
    bench.services.observe(ELSEWHERE)
    bench.replication.disown("east")
    await bench.settle()
    assert recovered(bench) == []
    assert not bench.services._unread


async def test_e2_an_order_that_heart_repeats_finds_what_could_not_be_recovered_in_place(
    bench: Bench,
) -> None:
    """Heart repeats it to an agent that said nothing for 3 s, which may be the same as before."""
    await replaced(bench)
    bench.switch.fail = None
    bench.services.recover(recover())
    await bench.settle()
    assert sorted(recovered(bench)) == ["u1", "u2"]


async def test_calls_that_are_up_are_not_recovered_beside_themselves_by_such_an_order(
    bench: Bench,
) -> None:
    bench.services.recover(recover())
    await bench.settle()
    bench.replication.append([alive("u1"), record("u2")])
    bench.services.recover(recover())
    await bench.settle()
    assert recovered(bench) == ["u2"]


async def test_an_order_to_end_calls_ends_a_recovery_in_place_and_buries_nothing(
    bench: Bench,
) -> None:
    bench.services.recover(recover())
    await bench.settle()
    bench.replication.append([record("u1", version=3)])
    bench.switch.hold.clear()
    await bench.services.freeswitch_replaced()
    await asyncio.sleep(0.02)
    assert bench.services.busy("east") == "recovering in place"
    bench.services.end_calls(EndCalls(0, Identity(9, 1, 5)))
    bench.switch.hold.set()
    await bench.settle()
    assert recovered(bench) == []
    assert [done[0] for done in bench.switch.done].count("end_calls") == 1
    assert not [r for r in bench.replication.appended if isinstance(r, Tombstone)]
    assert bench.work.in_place.stranded == {}
    assert bench.reports.under_way() == {}


async def test_e1_heart_knows_the_words_of_an_agent_without_a_nonce_after_a_reclaim(
    bench: Bench,
) -> None:
    """By the epoch of before it takes neither: not that somebody else had better have the calls,
    and not that they came back here; that would move them without a cause."""
    bench.replication.late = {"fs-b": [record("u1")]}
    refusal = refusing(bench)
    bench.services.observe(OWNED)
    await until(lambda: "east" in bench.work.in_place.stranded)
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 0), False, LOCKED)]
    bench.services.observe(lapsed())
    bench.services.observe(view({"east": ("fs-a", 9)}))
    await until(lambda: RecoveryEnded(0, Identity(9, 0, 0), False, LOCKED) in bench.sent)
    refusal.undo()
    await until(lambda: recovered(bench) == ["u1"])
    await until(lambda: bench.sent[-1] == RecoveryEnded(0, Identity(9, 0, 0), True))


@pytest.mark.parametrize("policy", ["recycle", "ignore"])
@pytest.mark.parametrize("starts", [False, True])
async def test_calls_that_are_not_to_be_recovered_are_over_in_the_log_as_well(
    bench: Bench, policy: Literal["recycle", "ignore"], starts: bool
) -> None:
    """Nobody would ever tell their end: they counted as calls of this node for ever, and a drain
    waited for them."""
    work = Recoveries(spec(), bench.replication, bench.history, bench.reports, bench.sent.append,
                      RecoverySection(calls=policy))  # fmt: skip
    services = Services(spec(), bench.replication, bench.history, work, lambda: None)
    services.switch = bench.switch
    if starts:
        bench.replication.late = {"fs-b": [record("u1", version=3)]}
        services.observe(OWNED)
    else:
        bench.replication.own("east", 7)
        bench.replication.append([record("u1", version=3)])
        await services.freeswitch_replaced()
    await until(lambda: not services.busy("east"))
    assert recovered(bench) == []
    assert bench.replication.own_records("east") == []
    assert len(bench.reports.find("last").calls.verdicts) == (policy == "recycle")
    await services.stop()


async def test_e1_phones_wait_for_no_node_that_is_slow_to_tell(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others have told while FreeSWITCH came up. Of a bridge nothing goes without the rest."""
    monkeypatch.setattr("haclusterd.agent.taking_stock.WAIT_S", 0.6)
    bench.replication.late = {"fs-b": [record("u1"), half("v1", "v2")], "fs-c": [half("v2", "v1")]}
    bench.replication.silent = {"fs-c"}
    bench.switch.fail = SwitchError("nothing listens")
    bench.services.observe(OWNED)
    await until(lambda: "fs-b" not in bench.replication.late)
    began = asyncio.get_running_loop().time()
    bench.switch.fail = None
    await until(lambda: recovered(bench) == ["u1"])
    assert asyncio.get_running_loop().time() - began < 0.5
    assert bench.replication.settled == []
    bench.replication.silent = set()
    await until(lambda: bench.replication.settled == ["east"])
    assert recovered(bench) == ["u1", "v1", "v2"]


async def test_e1_half_of_a_bridge_does_not_wait_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.taking_stock.SOON_S", 0.02)
    monkeypatch.setattr("haclusterd.agent.taking_stock.WAIT_S", 0.1)
    bench.replication.late = {"fs-b": [half("v1", "v2")], "fs-c": []}
    bench.replication.silent = {"fs-c"}
    bench.services.observe(OWNED)
    await until(lambda: recovered(bench) == ["v1"])


async def test_why_calls_are_not_read_yet_is_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A FreeSWITCH that is away for hours would fill the log."""
    caplog.set_level("INFO", "haclusterd.agent.taking_stock")
    bench.switch.fail = SwitchError("nothing listens")
    bench.services.observe(OWNED)
    await asyncio.sleep(0.08)
    bench.switch.fail = SwitchError(LOCKED)
    await asyncio.sleep(0.08)
    assert [line.rpartition(": ")[2] for line in caplog.messages] == [
        "nothing listens", "database is locked",
    ]  # fmt: skip


async def test_a_service_without_profiles_is_not_given_up_for_a_new_freeswitch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no calls; heart was told that they could not be recovered, and handed it over."""
    east, west = bench.work._spec.services
    bare = msgspec.structs.replace(bench.work._spec, services=(
        msgspec.structs.replace(east, profiles=()), west))  # fmt: skip
    monkeypatch.setattr(bench.services, "_spec", bare)
    bench.replication.own("east", 7)
    await bench.services.freeswitch_replaced()
    await asyncio.sleep(0.02)
    assert bench.switch.done == []
    assert bench.sent == []


async def test_e2_the_other_nodes_have_the_calls_over_real_connections(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    a = await cluster.start("a")
    b = await cluster.start("b")
    a.own("east", 7, settled=True)
    a.append([call(n, 100 + n) for n in range(100)])
    await until(lambda: len(held(b)) == 100)
    await cluster.kill("a")

    bench = Bench(tmp_path)
    again = cluster.running["a"] = AgentReplicator(cluster.config("a"), 99)
    work = Recoveries(spec(), again, bench.history, bench.reports, bench.sent.append)
    services = Services(spec(), again, bench.history, work, lambda: None)
    services.switch = bench.switch
    again.observe({"east": ("a", 7)}, ["a", "b"])
    services.observe(OWNED)
    bench.switch.lost = {"uuid-3"}
    await again.start()
    await until(lambda: len(recovered(bench)) == 100)
    await until(lambda: not services.busy("east") and len(b.store.services["east"].copies) == 1)
    assert b.freshness("east").state == "in-sync"
    newest = b.store.services["east"].newest()
    assert newest is not None
    assert (newest.settled, newest.stream.incarnation) == (True, 99)
    await until(lambda: len(held(b)) == 99)  # the lost one is buried, the others are safe
    await services.stop()
    for node in list(cluster.running):
        await cluster.kill(node)

"""What the agent does for a service when heart decides: own, recover, bury, end, resume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.history import History
from haclusterd.agent.recoveries import Recoveries
from haclusterd.agent.reports import Reports
from haclusterd.agent.services import Services
from haclusterd.agent.switch import SwitchError
from haclusterd.core.actions import EndCalls, Recover
from haclusterd.core.inputs import FromAgent, RecoveryEnded
from haclusterd.core.model import Identity
from haclusterd.core.records import CallRecord, Tombstone
from tests.fixtures.agent_parts import FakeReplication, FakeSwitch, record, spec, view

pytestmark = pytest.mark.timeout(20)


class Bench:
    """Services with stand-ins around it."""

    def __init__(self, folder: Path) -> None:
        self.sent: list[FromAgent] = []
        self.replication = FakeReplication()
        self.switch = FakeSwitch()
        self.history = History()
        self.reports = Reports(folder)
        self.why_no_switch = ""
        self.work = Recoveries(
            spec(), self.replication, self.history, self.reports, self.sent.append,
            without_switch=lambda: self.why_no_switch,
        )  # fmt: skip
        self.services = Services(spec(), self.replication, self.history, self.work, lambda: None)
        self.services.switch = self.switch

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0.005)
            if not self.services.busy("east"):
                return
        raise AssertionError(f"still {self.services.busy('east')}")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.services.stop()


def recover(epoch: int = 7, from_node: int = 1) -> Recover:
    times = {"dead": 4_980_000, "claimed": 4_981_000, "granted": 4_982_000, "address_up": 4_983_000}
    return Recover(0, Identity(epoch, 0, 99), from_node, "fs-b is silent", times)


async def test_a_takeover_recovers_reports_and_settles(bench: Bench) -> None:
    bench.replication.known = [record("u1"), record("u2", version=5)]
    bench.switch.lost = {"u2"}
    bench.services.recover(recover())
    await asyncio.sleep(0.05)
    await bench.services.call_changes([record("u1", version=9)])  # FreeSWITCH tracks it again
    await bench.settle()
    assert bench.replication.settled == ["east"]
    assert bench.replication.told[0] == ("own", "east", 7, False)
    assert bench.switch.fenced["east"] is False
    assert bench.switch.done[0][:4] == ("recover", "east", ("east",), ["u1", "u2"])
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), True, "")]
    report = bench.reports.find("last")
    assert (report.service, report.from_, report.to, report.epoch) == ("east", "fs-b", "fs-a", 7)
    assert (report.calls.replicated, report.calls.recovered, report.calls.lost) == (2, 1, 1)
    events = [moment.event for moment in report.timeline]
    assert events.index("dead") < events.index("address_up") < events.index("injected")
    assert "first_reinvite" in events
    assert events[-1] == "recovered"
    assert report.outage_ms == pytest.approx(3.0)
    # The lost call is buried with its version, and only then may standbys forget.
    assert Tombstone("east", "u2", 5, "") in bench.replication.appended


async def test_inherited_calls_that_never_show_up_again_delay_the_settling_only_so_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.SETTLE_S", 0.15)
    bench.replication.known = [record("u1")]
    bench.services.recover(recover())
    await asyncio.sleep(0.05)
    assert bench.replication.settled == []
    await asyncio.sleep(0.3)
    assert bench.replication.settled == ["east"]


async def test_a_freeswitch_that_cannot_is_said_to_heart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.RETRY_S", 0.01)
    bench.switch.fail = SwitchError("nothing listens on 127.0.0.1:8021")
    bench.services.recover(recover())
    await bench.settle()
    assert bench.sent == [
        RecoveryEnded(0, Identity(7, 0, 99), False, "nothing listens on 127.0.0.1:8021")
    ]
    assert bench.replication.settled == []
    assert "cannot recover east" in bench.history.last()[-1].text


async def test_a_fault_of_ours_is_said_to_heart_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would count as a service whose calls are coming back, for ever."""

    async def fails(service: str, but: object = ()) -> list[CallRecord]:
        raise KeyError("u1", "x" * 100_000)

    monkeypatch.setattr(bench.replication, "inherited", fails)
    bench.services.recover(recover())
    await bench.settle()
    (ended,) = bench.sent
    assert isinstance(ended, RecoveryEnded)
    assert (ended.ok, "KeyError('u1'" in ended.reason) == (False, True)
    assert len(ended.reason) < 5000, "it fits into a packet"
    assert "cannot recover east" in bench.history.last()[-1].text
    assert bench.replication.settled == []


async def test_calls_that_nobody_could_recover_are_tried_again_when_freeswitch_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.UP_S", 0.02)
    bench.switch.up = False
    bench.switch.problem = "nothing listens"
    bench.replication.known = [record("u1")]
    bench.services.recover(recover())
    await bench.settle()
    assert bench.sent[0] == RecoveryEnded(0, Identity(7, 0, 99), False, "nothing listens")
    bench.switch.up = True
    bench.services.freeswitch_connected()
    await asyncio.sleep(0.05)
    assert any(done[0] == "recover" and done[3] == ["u1"] for done in bench.switch.done)
    assert bench.sent[-1] == RecoveryEnded(0, Identity(7, 0, 99), True, "")


async def test_without_a_password_nothing_is_settled_and_the_first_login_tries_again(
    bench: Bench,
) -> None:
    """An unreadable ESL password file is not a takeover without calls."""
    bench.replication.known = [record("u1")]
    bench.work.switch, switch = None, bench.switch
    bench.why_no_switch = "esl.password: Permission denied: make it readable"
    bench.services.recover(recover())
    await bench.settle()
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), False, bench.why_no_switch)]
    assert bench.replication.settled == []
    bench.services.switch = switch
    bench.services.freeswitch_connected()
    await asyncio.sleep(0.05)
    assert any(done[0] == "recover" and done[3] == ["u1"] for done in switch.done)
    assert bench.sent[-1] == RecoveryEnded(0, Identity(7, 0, 99), True, "")


async def test_losing_the_service_ends_the_recovery_and_the_calls(bench: Bench) -> None:
    bench.switch.hold.clear()
    bench.services.recover(recover())
    await asyncio.sleep(0.02)
    assert bench.services.busy("east") == "recovering its calls"
    bench.services.end_calls(EndCalls(0, Identity(8, 2, 1)))
    assert bench.switch.fenced["east"] is True
    bench.switch.hold.set()
    await bench.settle()
    assert ("forget", "east") in bench.switch.done
    assert ("end_calls", ("east",)) in bench.switch.done
    assert ("disown", "east") in bench.replication.told
    assert not [m for m in bench.sent if isinstance(m, RecoveryEnded) and not m.ok]
    assert not any(done[0] == "recover" for done in bench.switch.done)


async def test_a_restarted_agent_rereads_its_calls_before_standbys_may_forget(
    bench: Bench,
) -> None:
    bench.switch.calls_here = [record("u1"), record("w1", "west")]
    bench.switch.hold.clear()
    bench.services.observe(view({"east": ("fs-a", 7), "west": ("fs-b", 2)}))
    await asyncio.sleep(0.02)
    assert bench.replication.told == [("own", "east", 7, False)]
    assert bench.replication.settled == []
    bench.switch.hold.set()
    await bench.settle()
    assert bench.replication.appended == [record("u1")]
    assert bench.replication.settled == ["east"]
    assert bench.switch.fenced == {"east": False, "west": True}


async def test_a_reclaim_goes_on_at_the_higher_epoch(bench: Bench) -> None:
    bench.replication.own("east", 7)
    bench.services.observe(view({"east": ("fs-a", 9)}))
    assert ("advance", "east", 9) in bench.replication.told


async def test_while_fenced_deletions_mean_nothing(bench: Bench) -> None:
    bench.replication.own("east", 7)
    bench.services.observe(view({"east": ("fs-a", 7)}))
    assert bench.switch.fenced["east"] is False
    bench.services.observe(view({}))
    assert bench.switch.fenced["east"] is True


async def test_a_freeswitch_that_came_back_gets_the_calls_of_services_that_stayed(
    bench: Bench,
) -> None:
    bench.replication.own("east", 7)
    bench.replication.append([record("u1", version=3), record("u2", version=4)])
    bench.switch.lost = {"u1"}
    await bench.services.freeswitch_replaced()
    await bench.settle()
    call = next(done for done in bench.switch.done if done[0] == "recover")
    assert call[3] == ["u1", "u2"]
    # Another epoch than that of a takeover, else calls with a verdict would be left out.
    assert call[4] != 7 << 12
    assert Tombstone("east", "u1", 3, "") in bench.replication.appended
    assert bench.reports.find("last").cause == "FreeSWITCH came back"


def recovered(bench: Bench) -> list[str]:
    """Calls that were given to FreeSWITCH with success, once for each time."""
    return [uuid for done in bench.switch.done if done[0] == "recover" for uuid in done[3]]


async def test_a_freeswitch_that_dies_in_mid_takeover_gets_every_call_again(bench: Bench) -> None:
    bench.replication.known = [record("u1"), record("u2", version=5)]
    bench.switch.hold.clear()
    bench.services.recover(recover())
    await asyncio.sleep(0.02)
    await bench.services.call_changes([record("u1", version=9)])  # was up, and tracked, already
    await bench.services.freeswitch_replaced()
    bench.switch.lost = {"u1"}
    bench.switch.hold.set()
    await bench.services.call_changes([record("u2", version=11)])
    await bench.settle()
    assert sorted(recovered(bench)) == ["u1", "u2"]
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), True, "")]
    assert Tombstone("east", "u1", 9, "") in bench.replication.appended
    assert bench.replication.settled == ["east"]
    await bench.services.freeswitch_replaced()  # now everything has its verdict: in place
    await bench.settle()
    assert bench.reports.find("last").cause == "FreeSWITCH came back"


async def test_a_recovery_that_failed_half_way_is_done_again_as_a_whole(bench: Bench) -> None:
    bench.replication.known = [record("u1"), record("u2")]
    bench.switch.fail = SwitchError("FreeSWITCH died")
    bench.services.recover(recover())
    await bench.services.call_changes([record("u1", version=9)])  # was up, and tracked, already
    await asyncio.sleep(1.2)
    ended = RecoveryEnded(0, Identity(7, 0, 99), False, "FreeSWITCH died")
    assert bench.sent == [ended]
    bench.switch.fail = None
    bench.services.freeswitch_connected()
    await bench.services.freeswitch_replaced()
    await bench.services.call_changes([record("u2", version=11)])
    await bench.settle()
    assert sorted(recovered(bench)) == ["u1", "u2"]
    assert bench.sent == [ended, RecoveryEnded(0, Identity(7, 0, 99), True, "")]
    assert bench.replication.settled == ["east"]


async def test_old_rows_are_cleared_at_every_login(bench: Bench) -> None:
    bench.services.freeswitch_connected()
    assert bench.services.busy("west") == "clearing old rows"
    await bench.settle()
    assert ("clear_stale",) in bench.switch.done
    assert "cleared 2 old recovery rows" in bench.history.last()[-1].text


async def test_reports_survive_the_agent(bench: Bench, tmp_path: Path) -> None:
    bench.services.recover(recover())
    await bench.settle()
    await asyncio.sleep(0.1)
    again = Reports(tmp_path)
    assert again.find("1").service == "east"
    with pytest.raises(KeyError, match="no report 9"):
        again.find("9")


async def test_calls_that_outlived_their_agent_and_their_service_are_ended_once(
    bench: Bench,
) -> None:
    ended = ("end_calls", ("east",))
    bench.services.freeswitch_connected()  # before heart's first word: nothing is known
    for state in ("owned", "lapsed", "reclaiming", "acquiring"):
        word = view({"east": ("fs-b", 8)})
        east = msgspec.structs.replace(word.services[0], local_state=state)
        bench.services.observe(msgspec.structs.replace(word, services=(east, word.services[1])))
        await bench.settle()
    bench.services.observe(view({}))  # nobody owns it: these calls may be all there is
    await bench.settle()
    assert ended not in bench.switch.done
    bench.switch.hold.clear()
    bench.services.observe(view({"east": ("fs-b", 8)}))
    assert bench.services.busy("east") == "making sure that it stands by"
    bench.switch.hold.set()
    await bench.settle()
    bench.services.observe(view({"east": ("fs-b", 8)}))
    await bench.settle()
    assert bench.switch.done.count(ended) == 1
    bench.services.freeswitch_connected()
    await bench.settle()
    assert bench.switch.done.count(ended) == 2


async def test_nothing_is_settled_before_every_living_node_has_told_what_it_knows(
    bench: Bench,
) -> None:
    """A new agent's store is empty, and nobody is connected yet."""
    bench.replication.late = {"fs-b": [record("u1"), record("u2")], "fs-c": [record("u3")]}
    bench.replication.silent = {"fs-b", "fs-c"}
    bench.services.recover(recover())
    await asyncio.sleep(0.05)
    assert [done[3] for done in bench.switch.done] == [[]], "standby is lifted at once"
    bench.replication.silent = {"fs-b"}
    await asyncio.sleep(0.05)
    assert [done[3] for done in bench.switch.done] == [[], ["u3"]], "who has told does not wait"
    assert bench.replication.settled == []
    assert bench.sent == []  # heart would not tell the next agent of this recovery
    assert not bench.reports.find("last").done
    bench.replication.silent = set()
    await asyncio.sleep(0.05)
    bench.replication.append([record(f"u{n}", version=9) for n in (1, 2, 3)])
    await bench.settle()
    assert [done[3] for done in bench.switch.done] == [[], ["u3"], ["u1", "u2"]]
    assert len({done[4] for done in bench.switch.done}) == 1, "one recovery: nothing done twice"
    assert bench.sent == [RecoveryEnded(0, Identity(7, 0, 99), True, "")]
    assert bench.replication.settled == ["east"]
    report = bench.reports.find("last")
    assert (report.number, report.calls.replicated, report.calls.recovered) == (1, 3, 3)
    assert report.unasked == []


async def test_bridged_legs_wait_for_each_other_while_nodes_still_tell(bench: Bench) -> None:
    leg = msgspec.structs.replace(record("u1"), partner="u2")
    other = msgspec.structs.replace(record("u2"), partner="u1")
    bench.replication.late = {"fs-b": [leg], "fs-c": [other]}
    bench.replication.silent = {"fs-c"}
    bench.services.recover(recover())
    await asyncio.sleep(0.05)
    assert [done[3] for done in bench.switch.done] == [[]]
    bench.replication.silent = set()
    await asyncio.sleep(0.05)
    assert [done[3] for done in bench.switch.done] == [[], ["u1", "u2"]]


async def test_a_report_does_not_wait_for_ever_and_says_who_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.latecomers.WAIT_S", 0.1)
    monkeypatch.setattr("haclusterd.agent.latecomers.PAUSE_MAX_S", 0.01)
    bench.replication.known = [record("u1")]
    bench.replication.late = {"fs-b": [record("u2")]}
    bench.replication.silent = {"fs-b"}
    bench.services.recover(recover())
    await asyncio.sleep(0.25)
    report = bench.reports.find("last")
    assert report.done
    assert (report.calls.replicated, report.unasked) == (1, ["fs-b"])
    assert "fs-b did not tell which calls it knows" in bench.history.last()[-1].text
    assert bench.replication.settled == []
    bench.replication.silent = set()
    await asyncio.sleep(0.05)
    bench.replication.append([record("u1", version=9), record("u2", version=9)])
    await bench.settle()
    report = bench.reports.find("last")
    assert (report.number, report.calls.replicated, report.calls.recovered) == (2, 1, 1)
    assert [verdict.uuid for verdict in report.calls.verdicts] == ["u2"]
    assert bench.replication.settled == ["east"]


async def test_a_node_that_never_tells_is_given_up_and_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.latecomers.WAIT_S", 0.05)
    monkeypatch.setattr("haclusterd.agent.latecomers.GIVE_UP_S", 0.2)
    monkeypatch.setattr("haclusterd.agent.latecomers.PAUSE_MAX_S", 0.01)
    bench.replication.late = {"fs-b": []}
    bench.replication.silent = {"fs-b"}
    bench.services.recover(recover())
    await asyncio.sleep(0.1)
    assert bench.replication.settled == []
    await bench.settle()
    assert bench.replication.settled == ["east"]
    assert "fs-b never told which calls of east it knows" in bench.history.last()[-1].text
    assert len(bench.reports.all()) == 1

"""A SIP profile that comes up where its service is owned takes calls; elsewhere it stands by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import lifting
from haclusterd.agent.drains import Drains
from haclusterd.agent.freeswitch import FreeswitchLife
from haclusterd.agent.history import History
from haclusterd.agent.local_switch import LocalSwitch
from haclusterd.agent.switch import SwitchError
from haclusterd.config import FreeSwitch
from haclusterd.core.records import CallRecord
from haclusterd.core.view import View
from haclusterd.freeswitch.profiles import ProfileState
from haclusterd.freeswitch.rest import Rest
from tests.fixtures.agent_parts import FakeSwitch, spec, view
from tests.fixtures.freeswitch.fake_esl import FakeEsl, json_event
from tests.fixtures.freeswitch.fake_recovery import Switch, calls
from tests.unit.test_agent_services import Bench as ServicesBench
from tests.unit.test_agent_services import recover
from tests.unit.test_calls import until
from tests.unit.test_drains import OPENED, SHUT, Bench, drain
from tests.unit.test_health_profiles import switch_at
from tests.unit.test_recovery import recovering, short

pytestmark = pytest.mark.timeout(20)


class Lifted(Bench):
    """Drains of fs-a, which owns east, as the agent puts them together."""

    def __init__(self, profiles: tuple[str, ...] = ("east",)) -> None:
        super().__init__()
        self.resting = True
        east, west = spec().services
        services = (msgspec.structs.replace(east, profiles=profiles), west)
        self.drains = Drains(
            msgspec.structs.replace(spec(), services=services), "", self.orders, self, self.history,
            lambda: self.view, lambda: self.switch, lambda name: self.working,
            lambda name: self.legs, lambda name: self.resting,
        )  # fmt: skip
        self.came_up = self.drains.lifting.came_up


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Lifted:
    monkeypatch.setattr(lifting, "LIFT_AFTER_S", 0.0)
    return Lifted()


async def test_a_profile_that_comes_up_at_the_owner_takes_calls(bench: Lifted) -> None:
    await bench.look(2)
    assert bench.done == []
    for profile in ("east", "internal"):
        bench.came_up(profile)
    await bench.look(3)
    assert bench.done == [OPENED]
    bench.came_up("east")  # once more
    await bench.look(2)
    assert bench.done == [OPENED, OPENED]


async def test_it_has_a_second_to_begin_and_its_recovery_to_be_known(
    bench: Lifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifting, "LIFT_AFTER_S", 0.1)
    bench.came_up("east")
    await bench.look(2)
    assert bench.done == []
    await asyncio.sleep(0.12)
    await bench.look()
    assert bench.done == [OPENED]


async def test_a_profile_of_a_service_that_others_own_stays_in_standby(bench: Lifted) -> None:
    bench.came_up("west")
    await bench.look(3)
    bench.view = view({"east": ("", 0), "west": ("fs-b", 2)})
    bench.came_up("east")
    await bench.look(3)
    assert bench.done == []


@pytest.mark.parametrize("why", ["recovering", "waiting", "lapsed", "down", "switchover"])
async def test_it_waits_for_what_a_recovery_would_have_to_wait_for(bench: Lifted, why: str) -> None:
    seen, switch = bench.view, bench.switch
    assert switch is not None
    if why == "recovering":
        bench.working = "recovering its calls"
    elif why == "waiting":
        bench.resting = False
    elif why == "lapsed":
        bench.view = view({"east": ("fs-a", 7), "west": ("fs-b", 2)}, me="fs-b")
    elif why == "switchover":
        await bench.drains.hold("east")
    switch.up = why != "down"
    bench.came_up("east")
    await bench.look(3)
    assert bench.done == []
    bench.view, bench.working, bench.resting, switch.up = seen, "", True, True
    await bench.drains.let_go("east", True)
    await bench.look(2)
    assert bench.done == [OPENED]


async def test_b7_one_that_is_closed_comes_up_closed(bench: Lifted) -> None:
    bench.orders.words = [drain("service:east")]
    await bench.look()
    bench.came_up("east")
    await bench.look(3)
    assert bench.done == [SHUT]


async def test_one_that_was_lifted_as_its_service_went_stands_by_again(bench: Lifted) -> None:
    assert bench.switch is not None
    real = bench.switch.stand_by

    async def slowly(profiles: Sequence[str], on: bool) -> None:
        await real(profiles, on)
        bench.view = view({"east": ("fs-b", 8), "west": ("fs-b", 2)})

    bench.switch.stand_by = slowly  # type: ignore[method-assign]
    bench.came_up("east")
    await bench.look(2)
    assert bench.done == [OPENED, SHUT]


HERE = {"east": ("fs-a", 7), "west": ("fs-b", 2)}


def lapsed() -> View:
    """Heart's word while the lease of east, which nobody else has, is over."""
    here = view({"west": ("fs-b", 2)})
    east, west = here.services
    lost = msgspec.structs.replace(east, local_state="lapsed")
    return msgspec.structs.replace(here, services=(lost, west))


async def test_one_that_was_lifted_as_its_lease_lapsed_is_lifted_when_it_is_back(
    bench: Lifted,
) -> None:
    """Heart orders no recovery for what it reclaims: its calls never left."""
    assert bench.switch is not None
    real = bench.switch.stand_by

    async def slowly(profiles: Sequence[str], on: bool) -> None:
        await real(profiles, on)
        bench.view = lapsed()

    bench.switch.stand_by = slowly  # type: ignore[method-assign]
    bench.came_up("east")
    await bench.look(2)
    assert bench.done == [OPENED, SHUT]
    bench.switch.stand_by = real  # type: ignore[method-assign]
    bench.view = view(HERE)
    await bench.look(2)
    assert bench.done == [OPENED, SHUT, OPENED]


async def test_what_may_have_been_lifted_as_its_service_went_stands_by_again(
    bench: Lifted,
) -> None:
    """A command without an answer may have been read."""
    assert bench.switch is not None
    real = bench.switch.stand_by

    async def unheard(profiles: Sequence[str], on: bool) -> None:
        await real(profiles, on)
        if not on:
            bench.view = view({"east": ("fs-b", 8), "west": ("fs-b", 2)})
            raise SwitchError("no reply within 5000 ms")

    bench.switch.stand_by = unheard  # type: ignore[method-assign]
    bench.came_up("east")
    await bench.look(2)
    assert bench.done == [OPENED, SHUT]


async def test_what_is_refused_is_an_alarm_and_tried_again(
    bench: Lifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.switch is not None
    found = bench.drains.lifting
    bench.switch.fail = SwitchError("SIP profile 'east' stays in standby: Invalid Profile")
    bench.came_up("east")
    await bench.look()
    assert found.alarms() == []  # it may be starting
    monkeypatch.setattr(lifting, "SAY_AFTER_S", 0.0)
    (alarm,) = found.alarms()
    assert alarm.name == "standby"
    assert alarm.text == "east: SIP profile 'east' stays in standby: Invalid Profile"
    bench.working = "recovering its calls"
    await bench.look()
    assert found.alarms() == []
    bench.working = ""
    await bench.look()
    assert found.alarms() == [alarm]
    bench.switch.fail = None
    await bench.look(2)
    assert (found.alarms(), bench.done) == ([], [OPENED])


async def test_life_tells_which_profiles_came_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen running after they were not, or told so, or after a login."""
    monkeypatch.setattr("haclusterd.agent.freeswitch.PROFILES_S", 0.01)
    switch, running, told = FakeSwitch(), ["east", "west"], list[str]()

    async def states(names: Sequence[str]) -> list[ProfileState]:
        return [ProfileState(n, "RUNNING (0)" if n in running else "", True, True) for n in names]

    switch.profiles = states  # type: ignore[method-assign]
    section = FreeSwitch(
        "127.0.0.1", 8021, tmp_path / "secret", tmp_path / "core.db", tmp_path / "pid", ()
    )
    life = FreeswitchLife(
        section, spec().services, History(), lambda _: None, lambda: None, lambda: None
    )
    life.switch, life.came_up = switch, told.append
    await life.start()
    try:
        await asyncio.sleep(0.1)
        assert told == ["east", "west"]
        running.remove("west")
        await asyncio.sleep(0.1)
        running.append("west")
        await asyncio.sleep(0.1)
        assert told == ["east", "west", "west"]
        life.profile_started("east")  # restarted between two looks
        assert told[3:] == ["east"]
        life.connected()
        await asyncio.sleep(0.1)
        assert told[4:] == ["east", "west"]
    finally:
        await life.stop()


async def test_the_local_switch_hears_of_a_profile_that_is_started(tmp_path: Path) -> None:
    told: list[str] = []
    async with FakeEsl() as server:
        switch = switch_at(server, tmp_path, [])
        object.__setattr__(switch._events, "profile_started", told.append)
        await switch.start()
        try:
            await until(lambda: told == [""])  # a login: any may have been started
            server.send_all(
                json_event(
                    {"Event-Name": "CUSTOM", "Event-Subclass": "sofia::profile_start",
                     "profile_name": "east"}
                )
            )  # fmt: skip
            await until(lambda: told == ["", "east"])
        finally:
            await switch.stop()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[tuple[FakeEsl, LocalSwitch]]:
    async with FakeEsl() as server:
        server.api["global_getvar core_uuid"] = "first\n"
        switch = switch_at(server, tmp_path, [])
        await switch.start()
        try:
            await until(lambda: switch.up and switch.core_uuid == "first")
            yield server, switch
        finally:
            await switch.stop()


def lifted(server: FakeEsl) -> list[str]:
    return [line.split()[3] for line in server.received if line.endswith(" recover")]


async def test_a_profile_that_does_not_run_keeps_no_other_in_standby_nor_out_of_it(
    local: tuple[FakeEsl, LocalSwitch],
) -> None:
    server, switch = local
    server.api["sofia profile gone"] = "Invalid Profile [gone]"
    server.api["sofia profile odd"] = "-ERR cannot find config for profile odd"
    with pytest.raises(SwitchError, match=r"'gone' stays .*; .*'odd' stays"):
        await switch.stand_by(["gone", "odd", "east"], False)
    assert lifted(server) == ["gone", "odd", "east"]
    await switch.stand_by(["gone", "east"], True)  # a switchover and a drain need no more
    with pytest.raises(SwitchError, match="'odd' is not rescanned"):
        await switch.stand_by(["odd", "east"], True)
    assert server.received[-1] == "api sofia profile east rescan"


async def test_no_standby_is_lifted_in_a_freeswitch_whose_recovery_is_still_to_come(
    local: tuple[FakeEsl, LocalSwitch],
) -> None:
    """It was started anew, and the connection that says so has not logged in again."""
    server, switch = local
    server.api["global_getvar core_uuid"] = "second\n"
    with pytest.raises(SwitchError, match="started anew"):
        await switch.stand_by(["east"], False)
    assert lifted(server) == []
    server.api["global_getvar core_uuid"] = "first\n"
    await switch.stand_by(["east"], False)
    assert lifted(server) == ["east"]


async def test_a_service_rests_unless_its_calls_wait_for_a_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.recoveries.RETRY_S", 0.01)
    bench = ServicesBench(tmp_path)
    try:
        bench.services.observe(view({"east": ("fs-a", 7)}))
        await bench.settle()
        assert bench.services.at_rest("east")
        bench.switch.fail = SwitchError("database is locked")
        bench.services.recover(recover())
        assert not bench.services.at_rest("east")
        await bench.settle()
        assert not bench.services.at_rest("east"), "it is tried again later"
        bench.switch.fail = None
        bench.services.recover(recover())
        await bench.settle()
        assert bench.services.at_rest("east")
        bench.services.observe(view({}))
        assert not bench.services.at_rest("east"), "its fence is closed"
    finally:
        await bench.services.stop()


async def test_what_a_profile_that_did_not_run_has_lost_is_not_called_back_when_it_comes_up(
    tmp_path: Path,
) -> None:
    """Its rows would stay, and whatever lifts the standby would recover them, an hour later."""
    fake = Switch(tmp_path / "core.db")
    await fake.listen()
    fake.api["sofia profile"] = "Invalid Profile [pa]"
    try:
        async with recovering(fake) as recovery:
            rest = Rest(nothing_more, all_of_them)
            verdicts = await recovery.recover("east", ["pa"], calls(1), epoch=3, rest=rest)
            assert short(verdicts)["call-0"] == "lost"
            assert fake.rows() == []
    finally:
        await fake.close()


async def nothing_more() -> Sequence[CallRecord]:
    return []


async def all_of_them(records: Sequence[CallRecord]) -> Sequence[CallRecord]:
    return records

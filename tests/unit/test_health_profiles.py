"""The health probe and the profile commands against a scripted FreeSWITCH."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from haclusterd.agent.local_switch import LocalSwitch
from haclusterd.agent.switch import SwitchEvents
from haclusterd.cli.main import command_line
from haclusterd.config import FreeSwitch
from haclusterd.freeswitch import console, profiles
from haclusterd.freeswitch.cpu_wait import CpuWait
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.health import Health, HealthProbe, parse_status
from tests.fixtures.freeswitch.fake_esl import FakeEsl

pytestmark = pytest.mark.timeout(20)
TRANSCRIPT = (
    Path(__file__).parents[1] / "fixtures/freeswitch/esl_session_transcript.txt"
).read_text()
STATUS = TRANSCRIPT.split("Content-Length: 365\n\n")[1][:365]
XMLSTATUS = TRANSCRIPT.split("Content-Length: 196\n\n")[1][:196]
SOFIA = """<?xml version="1.0"?>
<configuration name="sofia.conf"><profiles>
 <profile name="pa"><settings><param name="track-calls" value="true"/>
  <param name="profile-standby" value="yes"/></settings></profile>
 <profile name="bad"><settings><param name="x" value="y"/></settings></profile>
</profiles></configuration>"""


@pytest.fixture
async def server() -> AsyncIterator[FakeEsl]:
    async with FakeEsl() as fake:
        yield fake


def factory(server: FakeEsl) -> Callable[..., EslConnection]:
    settings = EslSettings(
        "127.0.0.1", server.port, "ClueCon", connect_timeout_ms=100, backoff_first_ms=5,
        backoff_max_ms=20,
    )  # fmt: skip
    return lambda **options: EslConnection(settings, **options)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.005)


def test_status_of_the_capture_and_of_nonsense() -> None:
    status = parse_status(STATUS)
    assert (status.sessions, status.sessions_total, status.sessions_max) == (1, 1, 3000)
    assert status.version.startswith("1.11.3-dev git cc93a68")
    assert status.ready
    assert status.idle_cpu_percent == 99.7
    assert not parse_status(STATUS.replace("is ready", "is not ready")).ready
    assert parse_status("-ERR\n") == parse_status("")


async def test_hang_and_return(server: FakeEsl) -> None:
    hanging = asyncio.Event()
    server.api["status"] = lambda _: None if hanging.is_set() else STATUS
    changes: list[Health] = []
    probe = HealthProbe(factory(server), changes.append, interval_ms=20)
    await probe.start()
    await until(lambda: probe.health.state == "up")
    assert probe.health.status.sessions == 1
    assert 0 <= probe.health.rtt_ms < 1000
    hanging.set()
    await until(lambda: probe.health.state == "hung")
    assert probe.health.misses == 3
    assert "60 ms" in probe.health.problem
    asked = len(server.received)
    await asyncio.sleep(0.2)
    assert len(server.received) == asked  # no pile of questions on a hung process
    hanging.clear()
    server.send_all(b"Content-Type: api/response\nContent-Length: 1\n\nU")
    await until(lambda: probe.health.state == "up")
    assert [health.state for health in changes] == ["up", "hung", "up"]
    await probe.stop()


async def test_a_stall_of_the_agent_is_no_hang_of_freeswitch(server: FakeEsl) -> None:
    server.api["status"] = lambda _: STATUS
    changes: list[Health] = []
    probe = HealthProbe(factory(server), changes.append, interval_ms=20)
    await probe.start()
    await until(lambda: probe.health.state == "up")
    for _ in range(8):
        server.api["status"] = lambda _: None  # is slow just while the agent has no CPU
        await asyncio.sleep(0.005)
        time.sleep(0.05)
    server.api["status"] = lambda _: STATUS
    server.send_all(b"Content-Type: api/response\nContent-Length: 1\n\nU")
    await until(lambda: probe.health.misses == 0)
    assert [health.state for health in changes] == ["up"]
    server.api["status"] = lambda _: None
    end = time.monotonic() + 5
    while probe.health.state != "hung":  # an agent that is always late finds out all the same
        assert time.monotonic() < end, "a hang is never seen"
        await asyncio.sleep(0)
        time.sleep(0.035)
    await probe.stop()


def thread(folder: Path, tid: int, waited_ms: int) -> None:
    (folder / "7/task" / str(tid)).mkdir(parents=True, exist_ok=True)
    (folder / "7/task" / str(tid) / "schedstat").write_text(f"1 {waited_ms * 1_000_000} 1\n")


def test_waiting_for_a_cpu_counts_from_the_last_look(tmp_path: Path) -> None:
    wait = CpuWait(lambda: 7, tmp_path)
    assert wait.look() == 0.0, "nobody there"
    thread(tmp_path, 7, 5000)
    thread(tmp_path, 8, 100)
    assert wait.look() == 0.0
    thread(tmp_path, 8, 180)
    thread(tmp_path, 9, 9000)
    assert wait.look() == pytest.approx(0.08)
    thread(tmp_path, 7, 6000)
    wait.forget()
    assert wait.look() == 0.0
    assert CpuWait(lambda: 0, tmp_path).look() == 0.0


class Starved(CpuWait):
    """A FreeSWITCH that waits for a CPU all the time, until `starving` is over."""

    starving = True

    def look(self) -> float:
        return 1.0 if self.starving else 0.0


async def test_a_freeswitch_without_cpu_is_not_killed_a_stopped_one_is(server: FakeEsl) -> None:
    server.api["status"] = lambda _: STATUS
    changes: list[Health] = []
    wait = Starved(lambda: 7)
    probe = HealthProbe(factory(server), changes.append, interval_ms=20, cpu_wait=wait)
    await probe.start()
    await until(lambda: probe.health.state == "up")
    server.api["status"] = lambda _: None
    await asyncio.sleep(0.3)  # many times what a hang takes, half of what is excused
    assert probe.health.state == "up"
    wait.starving = False
    await until(lambda: probe.health.state == "hung")  # it gets CPU, and is as silent
    assert [health.state for health in changes] == ["up", "hung"]
    await probe.stop()


async def test_eof_is_down_and_a_frozen_greeting_after_it_is_hung(server: FakeEsl) -> None:
    probe = HealthProbe(factory(server), interval_ms=20)
    await probe.start()
    await until(lambda: probe.health.state == "up")
    greeting, server.greeting = server.greeting, None
    server.drop_all()
    await until(lambda: probe.health.state == "hung")
    server.greeting = greeting
    await until(lambda: probe.health.state == "up")
    await server.close()
    await until(lambda: probe.health.state == "down")
    await until(lambda: "nothing listens" in probe.health.problem)
    await probe.stop()


def test_profile_states_and_parameters() -> None:
    assert profiles.parse_profile_states(XMLSTATUS) == {"pa": "RUNNING (1)"}
    assert profiles.parse_profile_states("-ERR no reply\n") == {}
    assert profiles.parse_profile_states("<!DOCTYPE x><profiles/>") == {}
    assert profiles.parse_profile_params(SOFIA)["pa"] == {
        "track-calls": "true", "profile-standby": "yes",
    }  # fmt: skip


async def test_facts_name_every_fix(server: FakeEsl) -> None:
    server.api |= {
        "sofia xmlstatus": XMLSTATUS,
        "xml_locate configuration configuration name sofia.conf": SOFIA,
        "xml_locate configuration configuration name switch.conf": (
            '<configuration><settings><param name="max-sessions" value="1"/></settings>'
            "</configuration>"
        ),
        "version": "FreeSWITCH Version 1.11\n",
        "global_getvar core_uuid": "abc",
    }
    esl = factory(server)(name="t")
    await esl.start()
    await esl.wait_up(1000)
    facts = await profiles.facts(esl, ["pa", "bad", "gone"])
    assert facts.profiles[0].problems == []
    text = "\n".join(facts.problems)
    for fix in ("track-calls", "profile-standby", "sofia.conf.xml", "rtp-port-usage-robustness"):
        assert fix in text
    assert (facts.version, facts.switchname) == ("FreeSWITCH Version 1.11", "")
    await esl.stop()


async def test_end_calls_touches_only_its_profiles(server: FakeEsl) -> None:
    counts = ["(3)", "(3)", "(1)", "(0)"]  # hupall answers before the calls are gone

    def xmlstatus(_: str) -> str:
        state = f"RUNNING {counts.pop(0)}"
        row = f"<profile><name>pa</name><type>profile</type><state>{state}</state></profile>"
        return f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<profiles>\n{row}</profiles>'

    server.api["sofia xmlstatus"] = xmlstatus
    server.api |= {"hupall": "+OK\n", "sofia profile pa rescan": "Reload XML [Success]\n+OK scan\n"}
    esl = factory(server)(name="t")
    await esl.start()
    await esl.wait_up(1000)
    assert await profiles.end_calls(esl, ["pa"])
    said = [line for line in server.received if line.startswith("api") and "status" not in line]
    assert not counts
    assert said == [
        "api sofia profile pa rescan",  # standby first: no new call slips in between
        "api hupall MANAGER_REQUEST sofia_profile_name pa",
    ]
    counts += ["(0)"] * 2  # once more: back into standby, nothing to hang up
    server.received.clear()
    assert not await profiles.end_calls(esl, ["pa", "not-started-yet"])
    assert not [line for line in server.received if "hupall" in line or "not-started" in line]
    counts += ["(0)"]
    server.api["sofia profile pa rescan"] = "Invalid Profile [pa]"
    with pytest.raises(profiles.ProfileError, match="pa"):
        await profiles.end_calls(esl, ["pa"])
    counts += ["(0)"] * 4
    for name in ("", "a b", "x;y", "a\nb"):
        with pytest.raises(profiles.ProfileError):
            await profiles.end_calls(esl, [name])
    await esl.stop()


async def test_auto_restart_is_on_unless_somebody_turned_it_off(server: FakeEsl) -> None:
    esl = factory(server)(name="t")
    await esl.start()
    await esl.wait_up(1000)
    off = '<param name="auto-restart" value="false"/>'
    everywhere = f"<configuration><global_settings>{off}</global_settings>"
    own = SOFIA.replace('value="yes"/>', f'value="yes"/>{off}')
    server.api["sofia xmlstatus"] = XMLSTATUS
    for conf, expected in (
        (SOFIA, [True, True]),
        (own, [False, True]),
        (SOFIA.replace('<configuration name="sofia.conf">', everywhere), [False, False]),
    ):
        server.api["xml_locate"] = conf
        found = await profiles.profile_states(esl, ["pa", "bad"])
        assert [state.auto_restart for state in found] == expected
    await esl.stop()


async def test_a_profile_that_somebody_restarts_is_left_to_it(
    server: FakeEsl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start beside that takes its port, and both fail; who stays away is started."""
    monkeypatch.setattr(profiles, "AWAY_S", 0.2)
    started: list[str] = []

    def start(line: str) -> str:
        started.append(line)
        return "+OK"

    server.api |= {"sofia xmlstatus": "<profiles/>", "xml_locate": "", "sofia profile": start}
    esl = factory(server)(name="test")
    await esl.start()
    await esl.wait_up(3000)
    keeper = profiles.ProfileKeeper()
    assert [s.running for s in await keeper.look(esl, ["east"])] == [False]
    server.api["sofia xmlstatus"] = XMLSTATUS.replace("pa", "east")
    await keeper.look(esl, ["east"])  # it is back
    await asyncio.sleep(0.25)
    server.api["sofia xmlstatus"] = "<profiles/>"
    await keeper.look(esl, ["east"])
    assert started == []
    await asyncio.sleep(0.25)
    await keeper.look(esl, ["east"])
    assert started == ["sofia profile east start"]
    await esl.stop()


def switch_at(server: FakeEsl, tmp_path: Path, logins: list[None]) -> LocalSwitch:
    (tmp_path / "esl.password").write_text("ClueCon")

    async def nothing(*_: object) -> None: ...

    events = SwitchEvents(nothing, nothing, lambda: logins.append(None), lambda _: None,
                          lambda _: None, lambda: None, lambda _: None)  # fmt: skip
    section = FreeSwitch(
        "127.0.0.1", server.port, tmp_path / "esl.password", tmp_path / "core.db",
        tmp_path / "pid", (), compare=False,
    )  # fmt: skip
    server.api |= {"sofia xmlstatus": "<profiles/>", "xml_locate": "", "sofia profile": "+OK"}
    return LocalSwitch(section, {"east": "east"}, events, tmp_path / "sock")


START = "api sofia profile east start"


async def test_a_profile_that_was_away_before_freeswitch_was_started_again_has_its_time_anew(
    server: FakeEsl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeSWITCH is stopped, its profiles first; the new one is still starting them."""
    monkeypatch.setattr(profiles, "AWAY_S", 0.3)
    logins: list[None] = []
    switch = switch_at(server, tmp_path, logins)
    await switch.start()
    try:
        for number in (1, 2):
            async with asyncio.timeout(5):
                while len(logins) < number or not switch.up:
                    await asyncio.sleep(0.01)
            await switch.profiles(["east"])
            assert START not in server.received
            await asyncio.sleep(0.35)
            if number == 1:
                server.api["global_getvar core_uuid"] = "another"
                server.drop_all()
        await switch.profiles(["east"])
        assert START in server.received
    finally:
        await switch.stop()


async def test_logins_that_follow_each_other_do_not_put_the_start_of_a_profile_off(
    server: FakeEsl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same FreeSWITCH, whose event socket is lost again and again before `AWAY_S` is over."""
    monkeypatch.setattr(profiles, "AWAY_S", 0.3)
    server.api["global_getvar core_uuid"] = "the same"
    logins: list[None] = []
    switch = switch_at(server, tmp_path, logins)
    await switch.start()
    try:
        await until(lambda: switch.up)
        began = time.monotonic()
        while START not in server.received:
            assert time.monotonic() - began < 5, "each login began the wait anew"
            await switch.profiles(["east"])
            known = len(logins)
            server.drop_all()
            await until(lambda known=known: len(logins) > known and switch.up)  # type: ignore[misc]
        assert time.monotonic() - began >= 0.3
    finally:
        await switch.stop()


def test_what_fs_cli_completes_is_understood_and_ends_by_itself() -> None:
    words = [line.split() for line in console.completions(["east"], ["fs-a"])]
    for line in words:
        assert command_line().parse_args(line).command == line[0]
    assert not {line[0] for line in words} & {"events", "watch", "lab"}
    many = [f"s{n}" for n in range(100)]
    assert len(console.completions(many, many)) == console.COMPLETIONS_MAX


async def test_the_console_alias_is_made_anew_and_never_twice(server: FakeEsl) -> None:
    server.api |= {"alias": "+OK\n", "complete": "+OK\n"}
    esl = factory(server)(name="t")
    await esl.start()
    await esl.wait_up(1000)
    program, names = "/opt/ha/bin/haclusterctl", (["east"], ["fs-a", "fs-b"])
    await console.install(esl, program, "/run/ha.sock", *names)
    said = [line for line in server.received if line.startswith("api")]
    assert said[:2] == [
        f"api alias add ha_cluster system 2>&1 timeout 60 {program} --socket /run/ha.sock",
        "api complete del ha_cluster",
    ]
    assert said[2] == "api complete add ha_cluster status"
    assert {
        "api complete add ha_cluster switchover east --to fs-b",
        "api complete add ha_cluster maintenance off fs-a",
    } <= set(said)
    assert len(said) == len(set(said))
    with pytest.raises(console.ConsoleError, match="characters"):
        await console.install(esl, "/bin/x;reboot", "/run/ha.sock")
    server.api["alias"] = "-ERR alias Command not found!\n"
    with pytest.raises(console.ConsoleError, match="refused"):
        await console.install(esl, "/bin/x", "/run/ha.sock")
    await esl.stop()

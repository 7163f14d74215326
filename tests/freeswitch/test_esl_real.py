"""Capture, recovery, health and profiles against two real FreeSWITCHes in network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from haclusterd.core.records import CallRecord, Tombstone
from haclusterd.freeswitch import profiles as sip_profiles
from haclusterd.freeswitch.calls import CallSource, Change
from haclusterd.freeswitch.esl import EslConnection, EslSettings
from haclusterd.freeswitch.health import HealthProbe, parse_status
from haclusterd.freeswitch.recovery import Recovery
from haclusterd.lab import netns
from haclusterd.lab.freeswitch import (
    FreeswitchInstance,
    FreeswitchOptions,
    ServiceProfile,
    find_binary,
)
from haclusterd.lab.netns import LabError

Result = TypeVar("Result")
TAG = "esl"
VIP, OTHER_VIP, CALLER, CALLEE = "10.99.7.100", "10.99.7.101", "10.99.7.21", "10.99.7.22"
SCENARIOS = Path(netns.__file__).parent / "scenarios"


def why_not() -> str:
    try:
        find_binary()
    except LabError as error:
        return str(error)
    if shutil.which("sipp") is None:
        return "sipp is missing: apt-get install sip-tester"
    return netns.why_not()


pytestmark = [
    pytest.mark.freeswitch,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "ready"),
]


class Site:
    """Two FreeSWITCHes, a and b, and telephones on one switched network."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.phones: list[subprocess.Popen[bytes]] = []
        self.names = [f"{TAG}{os.getpid()}-{part}" for part in ("sw", "a", "b", "u")]
        self.switch, a, b, self.user = self.names
        for name in self.names:
            netns.ip("netns", "add", name)
            netns.ip("link", "set", "lo", "up", namespace=name)
        netns.ip("link", "add", "br0", "type", "bridge", namespace=self.switch)
        netns.ip("link", "set", "br0", "up", namespace=self.switch)
        for number, name in enumerate((a, b, self.user)):
            end = f"p{number}"
            netns.ip("link", "add", end, "netns", self.switch, "type", "veth", "peer",
                     "name", "eth0", "netns", name)  # fmt: skip
            netns.ip("link", "set", end, "master", "br0", "up", namespace=self.switch)
            netns.ip("link", "set", "eth0", "up", namespace=name)
        netns.ip("addr", "add", "10.99.7.1/24", "dev", "eth0", namespace=a)
        netns.ip("addr", "add", "10.99.7.2/24", "dev", "eth0", namespace=b)
        for address in (CALLER, CALLEE):
            netns.ip("addr", "add", f"{address}/24", "dev", "eth0", namespace=self.user)
        services = (ServiceProfile("east", VIP), ServiceProfile("west", OTHER_VIP))
        self.a, self.b = (
            FreeswitchInstance(
                None, directory / name, name, services,
                options=FreeswitchOptions(switchname=name, bridge_target=f"{CALLEE}:5060"),
            )
            for name in (a, b)
        )  # fmt: skip

    def start(self) -> None:
        self.a.start()
        self.b.start()
        self.a.wait_ready()
        self.b.wait_ready()

    def close(self) -> None:
        for phone in self.phones:
            phone.kill()
            phone.wait()
        for instance in (self.a, self.b):
            with contextlib.suppress(LabError):
                instance.kill(signal.SIGKILL)
        netns.kill_inside(self.names)
        for name in self.names:
            netns.ip("netns", "del", name)

    def own(self, instance: FreeswitchInstance, address: str) -> None:
        for other in (self.a, self.b):
            with contextlib.suppress(LabError):
                netns.ip("addr", "del", f"{address}/32", "dev", "eth0", namespace=other.namespace)
        netns.ip("addr", "add", f"{address}/32", "dev", "eth0", namespace=instance.namespace)
        with contextlib.suppress(LabError):
            netns.ip("neigh", "flush", "all", namespace=self.user)

    def phone(self, *words: str) -> subprocess.Popen[bytes]:
        with netns.inside(self.user):
            phone = subprocess.Popen(
                ["sipp", *words, "-nostdin", "-trace_err", "-buff_size", "4000000"],
                cwd=self.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self.phones.append(phone)
        return phone

    def callers(self, extension: str, calls: int, address: str = VIP) -> subprocess.Popen[bytes]:
        media_port = 20000 + 100 * len(self.phones)
        return self.phone(
            f"{address}:5060", "-sf", str(SCENARIOS / "uac_echo.xml"), "-i", CALLER,
            "-s", extension, "-m", str(calls), "-l", str(calls), "-r", "50",
            "-mp", str(media_port), "-rtp_echo",
            "-recv_timeout", "60000",
        )  # fmt: skip

    def callee(self) -> subprocess.Popen[bytes]:
        return self.phone(
            "-sf", str(SCENARIOS / "uas.xml"), "-i", CALLEE, "-mp", "30000", "-rtp_echo"
        )

    def kill(self, instance: FreeswitchInstance) -> None:
        instance.kill(signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def inside(instance: FreeswitchInstance, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    with netns.inside(instance.namespace):
        return asyncio.run(work())


def factory(instance: FreeswitchInstance) -> Callable[..., EslConnection]:
    settings = EslSettings("127.0.0.1", instance.esl_port, instance.esl_password)

    def make(**options: Any) -> EslConnection:
        return EslConnection(settings, **options)

    return make


class Collector:
    """Holds what a CallSource told, newest version per call."""

    def __init__(self) -> None:
        self.records: dict[str, CallRecord] = {}
        self.tombstones: list[Tombstone] = []
        self.versions: list[tuple[str, int]] = []

    async def take(self, changes: list[Change]) -> None:
        for change in changes:
            self.versions.append((change.uuid, change.version))
            if isinstance(change, CallRecord):
                self.records[change.uuid] = change
            else:
                self.records.pop(change.uuid, None)
                self.tombstones.append(change)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.01)


async def activate(instance: FreeswitchInstance, profile: str) -> None:
    esl = factory(instance)(name="test")
    await esl.start()
    await esl.wait_up(3000)
    await esl.api(f"sofia profile {profile} recover")
    await esl.stop()


def capture(
    site: Site, instance: FreeswitchInstance, legs: int, patience_s: float = 15
) -> dict[str, CallRecord]:
    """Records of `legs` settled legs on `instance`, as a slave would hold them."""

    async def work() -> dict[str, CallRecord]:
        held = Collector()
        source = CallSource(
            instance.core_db, {"east": "east", "west": "west"}, held.take,
            esl_factory=factory(instance),
        )  # fmt: skip
        await source.start()
        await until(lambda: len(held.records) == legs, patience_s)
        await asyncio.sleep(0.5)  # the last update (ACK data) comes 200 ms later
        assert source.problem == ""
        await source.stop()
        return held.records

    return inside(instance, work)


def recover(
    instance: FreeswitchInstance, records: list[CallRecord], profile: str = "east",
    epoch: int = 1, ready: Callable[[], None] = lambda: None,
) -> tuple[dict[str, str], dict[str, float]]:  # fmt: skip
    """Verdicts by uuid and ms per stage; `ready` is called when all connections are up."""
    stages: dict[str, float] = {}

    async def work() -> dict[str, str]:
        recovery = Recovery(factory(instance), instance.core_db)
        await recovery.start()
        await until(lambda: not recovery.problem)
        ready()
        began = asyncio.get_running_loop().time()

        def note(stage: str, legs: int, at: float) -> None:
            stages[stage] = (at - began) * 1000

        verdicts = await recovery.recover(
            profile, [profile], records, note, epoch=epoch, outage_began=began
        )
        again = await recovery.recover(profile, [profile], records, epoch=epoch)
        assert [v.verdict for v in again] == [v.verdict for v in verdicts]
        await recovery.stop()
        return {v.uuid: f"{v.verdict}: {v.reason}" for v in verdicts}

    return inside(instance, work), stages


def channels(instance: FreeswitchInstance) -> int:
    return parse_status(instance.api("status")).sessions


def take_over(
    site: Site, old: FreeswitchInstance, new: FreeswitchInstance, records: dict[str, CallRecord]
) -> dict[str, float]:
    site.kill(old)
    site.own(new, VIP)
    verdicts, stages = recover(new, list(records.values()))
    assert all(v.startswith("recovered: re-INVITE answered") for v in verdicts.values()), verdicts
    return stages


@pytest.mark.parametrize("calls", [1, 100])
def test_calls_survive_the_death_of_their_freeswitch(site: Site, calls: int) -> None:
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    phones = site.callers("9197", calls)
    records = capture(site, site.a, calls)
    assert {r.direction for r in records.values()} == {"inbound"}
    stages = take_over(site, site.a, site.b, records)
    print(calls, "calls", {stage: round(ms, 1) for stage, ms in stages.items()})
    assert channels(site.b) == calls
    with contextlib.closing(sqlite3.connect(site.b.core_db)) as db:
        left = db.execute("SELECT count(*) FROM recovery WHERE profile_name LIKE '%#%'").fetchone()
    assert left == (0,)
    site.b.api("hupall")
    assert phones.wait(10) == 0


def test_bridged_calls_twice_over_and_back(site: Site) -> None:
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    site.callee()
    phones = site.callers("4100", 10)
    records = capture(site, site.a, 20)
    outbound = [r for r in records.values() if r.direction == "outbound"]
    assert len(outbound) == 10
    assert all(records[r.partner].partner == r.uuid for r in outbound)
    stages = take_over(site, site.a, site.b, records)
    print("10 bridged", {stage: round(ms, 1) for stage, ms in stages.items()})
    site.a.start()
    site.a.wait_ready()
    second = capture(site, site.b, 20)
    assert all(second[uuid].version > records[uuid].version for uuid in records)

    async def clean() -> int:
        recovery = Recovery(factory(site.a), site.a.core_db)
        await recovery.start()
        await until(lambda: recovery.problem == "")
        cleared = await recovery.clear_stale_rows()
        await recovery.stop()
        return cleared

    assert inside(site.a, clean) == 20
    take_over(site, site.b, site.a, second)
    assert channels(site.a) == 20
    site.a.api("hupall")
    assert phones.wait(10) == 0


def test_hang_ups_are_tombstones_but_a_shutdown_is_not(site: Site) -> None:
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    site.callers("9197", 5)

    async def work() -> None:
        held = Collector()
        source = CallSource(
            site.a.core_db, {"east": "east"}, held.take, esl_factory=factory(site.a)
        )
        await source.start()
        await until(lambda: len(held.records) == 5)
        one = next(iter(held.records))
        await asyncio.to_thread(site.a.api, f"uuid_kill {one}")
        await until(lambda: len(held.tombstones) == 1, 3)
        assert held.tombstones[0].uuid == one
        assert len(await source.snapshot()) == 4
        assert site.a.pid is not None
        os.kill(site.a.pid, signal.SIGTERM)
        await asyncio.sleep(2.5)
        assert len(held.tombstones) == 1
        assert len(held.records) == 4
        await source.stop()
        last: dict[str, int] = {}
        for uuid, version in held.versions:
            assert version >= last.get(uuid, 0)
            last[uuid] = version

    inside(site.a, work)


def test_gone_phones_are_lost_calls_with_a_reason(site: Site) -> None:
    site.own(site.a, VIP)
    inside(site.a, lambda: activate(site.a, "east"))
    phones = site.callers("9197", 3)
    records = capture(site, site.a, 3)
    phones.kill()
    phones.wait()
    site.kill(site.a)
    site.own(site.b, VIP)
    verdicts, _ = recover(site.b, list(records.values()))
    assert all(v.startswith("lost: the phone can not be reached, or") for v in verdicts.values())


def test_ending_one_service_leaves_the_other_alone(site: Site) -> None:
    for profile, address in (("east", VIP), ("west", OTHER_VIP)):
        site.own(site.a, address)
        inside(site.a, lambda profile=profile: activate(site.a, profile))  # type: ignore[misc]
    site.callers("9197", 3)
    site.callers("9197", 2, OTHER_VIP)
    capture(site, site.a, 5)

    async def work() -> None:
        esl = factory(site.a)(name="test")
        await esl.start()
        await esl.wait_up(3000)
        began = time.monotonic()
        await sip_profiles.end_calls(esl, ["east"])
        print("end_calls", round((time.monotonic() - began) * 1000), "ms")
        states = await sip_profiles.ProfileKeeper().look(esl, ["east", "west"])
        assert all(state.running and not state.problems for state in states)
        facts = await sip_profiles.facts(esl, ["east", "nosuch"])
        assert facts.rtp_port_usage_robustness is True
        assert "nosuch" in facts.problems[0]
        print(facts)
        await esl.stop()

    inside(site.a, work)
    assert channels(site.a) == 2


def test_a_hung_freeswitch_is_seen_and_seen_to_come_back(site: Site) -> None:
    async def work() -> None:
        seen: list[tuple[str, float]] = []
        probe = HealthProbe(
            factory(site.b), lambda health: seen.append((health.state, time.monotonic()))
        )
        await probe.start()
        await until(lambda: probe.health.state == "up", 3)
        assert probe.health.status.ready
        assert probe.health.status.version.startswith("1.")
        assert site.b.pid is not None
        stopped = time.monotonic()
        os.kill(site.b.pid, signal.SIGSTOP)
        await until(lambda: probe.health.state == "hung", 3)
        assert 0.2 < seen[-1][1] - stopped < 1.2
        os.kill(site.b.pid, signal.SIGCONT)
        await until(lambda: probe.health.state == "up", 3)
        await probe.stop()

    inside(site.b, work)

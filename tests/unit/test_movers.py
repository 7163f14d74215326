"""`mover = "exec"`: order with heart, deadlines, second thoughts, and scripts that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.history import History
from haclusterd.agent.movers import Movers
from haclusterd.config import Config, load_cluster
from haclusterd.config.watching import Mover
from haclusterd.core.actions import Recover
from haclusterd.core.inputs import FromAgent, LocalReport, RecoveryEnded
from haclusterd.core.model import Identity
from haclusterd.core.view import View
from haclusterd.sensors.movers import environment_of
from tests.fixtures.agent_parts import view
from tests.unit.config_example import GOOD

pytestmark = pytest.mark.timeout(60)
IDENTITY = Identity(7, 0, 99)
BACK = RecoveryEnded(0, IDENTITY, True)


class Cloud:
    """A provider: the file `at` says where the packets go, `log` what was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: list[FromAgent] = []
        self.history = History()
        self.script("add", 'echo "$HACLUSTERD_NODE" > at')
        self.script("check", '[ "$(cat at 2>/dev/null)" = "$HACLUSTERD_NODE" ] && exit 0; exit 1')
        self.script("remove", "exit 0")

    def script(self, verb: str, text: str) -> None:
        path = self.folder / verb
        path.write_text(
            f'#!/bin/sh\ncd "{self.folder}"\necho "$HACLUSTERD_VERB $HACLUSTERD_EPOCH" >> log\n'
            f"{text}\n"
        )
        path.chmod(0o755)

    def config(self, deadline_ms: int = 5000, check_ms: int = 100, checked: bool = True) -> Config:
        path = self.folder / "c.toml"
        path.write_text(GOOD)
        words = {verb: (str(self.folder / verb),) for verb in ("add", "check", "remove")}
        check = words["check"] if checked else ()
        mover = Mover("east", words["add"], words["remove"], check, (), deadline_ms, check_ms)
        return replace(load_cluster(path).bound_to(0), movers=(mover,))

    def movers(self, **options: int | bool) -> Movers:
        config = self.config(**options)  # type: ignore[arg-type]
        return Movers(config, self.sent.append, self.history, lambda: None)

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def at(self) -> str:
        path = self.folder / "at"
        return path.read_text().strip() if path.exists() else ""

    async def until(self, true: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(15):
                while not true():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{what}: {self.log}, {self.history.last()}") from None


def won(epoch: int = 7) -> Recover:
    return Recover(0, Identity(epoch, 0, 99), 1, "fs-b is dead", {})


def owned(epoch: int = 7) -> View:
    return view({"east": ("fs-a", epoch)})


def in_state(state: str, owner: str = "fs-a", epoch: int = 7) -> View:
    word = view({"east": (owner, epoch)})
    first = msgspec.structs.replace(word.services[0], local_state=state)
    return msgspec.structs.replace(word, services=(first, *word.services[1:]))


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def test_the_calls_are_back_only_when_packets_come_here(cloud: Cloud) -> None:
    """E19: the result goes to heart as an input, in this order."""

    async def scenario() -> None:
        cloud.script("add", 'sleep 0.3; echo "$HACLUSTERD_NODE" > at')
        movers = cloud.movers()
        movers.recover(won())
        movers.ended(BACK)
        movers.ended(LocalReport(True, 1, 100, 0, 0, False, ()))
        assert [type(m) for m in cloud.sent] == [LocalReport], "others pass"
        await cloud.until(lambda: BACK in cloud.sent, "told")
        assert cloud.at == "fs-a"
        assert cloud.log[0] == "add 7"
        await movers.stop()

    asyncio.run(scenario())


def test_packets_first_and_calls_after_is_one_word(cloud: Cloud) -> None:
    async def scenario() -> None:
        movers = cloud.movers()
        movers.recover(won())
        await cloud.until(lambda: movers.counts["added"] == 1, "added")
        assert cloud.sent == []
        movers.ended(BACK)
        assert cloud.sent == [BACK]
        await movers.stop()

    asyncio.run(scenario())


def test_a_failed_recovery_is_told_at_once(cloud: Cloud) -> None:
    async def scenario() -> None:
        cloud.script("add", "sleep 60")
        movers = cloud.movers()
        movers.recover(won())
        failed = RecoveryEnded(0, IDENTITY, False, "nothing listens")
        movers.ended(failed)
        assert cloud.sent == [failed]
        await movers.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'denied by policy'; exit 1", "mover_add: exit status 1: denied by policy"),
        ("sleep 60", "mover_add: did not end within"),
        ("kill -9 $$", "mover_add: exit status -9"),
    ],
)
def test_past_the_deadline_heart_may_hand_on_and_here_it_is_tried_on(
    cloud: Cloud, script: str, reason: str
) -> None:
    async def scenario() -> None:
        cloud.script("add", script)
        movers = cloud.movers(deadline_ms=400)
        movers.recover(won())
        movers.ended(BACK)
        await cloud.until(lambda: bool(cloud.sent), "told")
        (failed,) = cloud.sent
        assert isinstance(failed, RecoveryEnded)
        assert (failed.identity, failed.ok) == (IDENTITY, False)
        assert reason in failed.reason
        (alarm,) = movers.alarms
        assert alarm.name == "mover"
        assert alarm.text.startswith("east: mover_add")
        cloud.script("add", 'echo "$HACLUSTERD_NODE" > at')
        await cloud.until(lambda: BACK in cloud.sent, "mended")
        assert len(cloud.sent) == 2, "once each, however often it was tried"
        assert movers.alarms == []
        await movers.stop()

    asyncio.run(scenario())


def test_packets_that_went_elsewhere_are_fetched_again(cloud: Cloud) -> None:
    """A late call of a former owner at the provider does no lasting harm."""

    async def scenario() -> None:
        movers = cloud.movers()
        movers.recover(won())
        movers.observe(owned())
        await cloud.until(lambda: cloud.at == "fs-a", "added")
        (cloud.folder / "at").write_text("fs-b\n")
        await cloud.until(lambda: movers.counts["moved_back"] == 1, "seen")
        await cloud.until(lambda: cloud.at == "fs-a", "fetched again")
        await movers.stop()

    asyncio.run(scenario())


def test_who_is_no_owner_any_more_stops_at_once_and_removes(cloud: Cloud) -> None:
    async def scenario() -> None:
        cloud.script("add", 'sleep 1; echo "$HACLUSTERD_NODE" > at')
        movers = cloud.movers()
        movers.recover(won())
        await cloud.until(lambda: "add 7" in cloud.log, "started")
        movers.observe(in_state("releasing"))
        await cloud.until(lambda: any(x.startswith("remove") for x in cloud.log), "removed")
        await asyncio.sleep(1.2)
        assert cloud.at == "", "its late call was killed"
        movers.observe(in_state("standby", "fs-b", 8))
        await asyncio.sleep(0.1)
        assert len([x for x in cloud.log if x.startswith("remove")]) == 1
        assert cloud.sent == []
        await movers.stop()

    asyncio.run(scenario())


def test_a_lapse_keeps_the_packets_and_a_reclaim_looks_whether_they_stayed(cloud: Cloud) -> None:
    async def scenario() -> None:
        movers = cloud.movers(check_ms=60_000)
        movers.recover(won())
        movers.observe(owned())
        await cloud.until(lambda: movers.counts["added"] == 1, "added")
        for state in ("lapsed", "reclaiming"):
            movers.observe(in_state(state))
        assert not [x for x in cloud.log if x.startswith("remove")]
        (cloud.folder / "at").write_text("fs-b\n")
        movers.observe(owned(8))
        await cloud.until(lambda: cloud.at == "fs-a", "fetched again")
        assert cloud.log[-2:] == ["check 8", "add 8"]
        await movers.stop()

    asyncio.run(scenario())


def test_a_new_agent_asks_before_it_moves_anything(cloud: Cloud) -> None:
    async def scenario() -> None:
        (cloud.folder / "at").write_text("fs-a\n")
        movers = cloud.movers(check_ms=60_000)
        movers.observe(owned())
        await cloud.until(lambda: cloud.log == ["check 7"], "asked")
        await asyncio.sleep(0.2)
        assert cloud.log == ["check 7"]
        await movers.stop()

    asyncio.run(scenario())


def test_a_check_that_does_not_know_moves_nothing(cloud: Cloud) -> None:
    async def scenario() -> None:
        movers = cloud.movers()
        movers.recover(won())
        await cloud.until(lambda: movers.counts["added"] == 1, "added")
        cloud.script("check", "echo 'API is down'; exit 9")
        await cloud.until(lambda: bool(movers.alarms), "said")
        assert "mover_check: exit status 9: API is down" in movers.alarms[0].text
        await asyncio.sleep(0.3)
        assert movers.counts["added"] == 1
        await movers.stop()

    asyncio.run(scenario())


def test_services_without_a_mover_pass(cloud: Cloud) -> None:
    movers = Movers(
        replace(cloud.config(), movers=()), cloud.sent.append, cloud.history, lambda: None
    )
    movers.recover(won())
    movers.observe(owned())
    movers.ended(BACK)
    assert cloud.sent == [BACK]
    assert movers.counters() == {}


def test_what_a_command_is_told(cloud: Cloud) -> None:
    config = cloud.config()
    told = environment_of(config, config.movers[0])
    assert told["HACLUSTERD_ADDRESSES"].split() == ["203.0.113.10", "2001:db8::10"]
    assert told["HACLUSTERD_NICS"] == "eth0 eth0"
    assert (told["HACLUSTERD_NODE"], told["HACLUSTERD_SERVICE"]) == ("fs-a", "east")

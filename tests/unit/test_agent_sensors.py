"""Sensors in the agent: what they take, what they say, and that none holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.health import NodeHealth
from haclusterd.agent.history import History
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.peers import Word
from haclusterd.agent.schema import SensorState, Sync
from haclusterd.agent.sensors import Sensors
from haclusterd.agent.standing import judge
from haclusterd.config import Config, load_cluster
from haclusterd.config.watching import HealthSection, Sensor
from haclusterd.core.view import View
from haclusterd.freeswitch.esl_protocol import Event
from haclusterd.sensors.reading import CRITICAL, OK, Reading
from tests.fixtures.agent_parts import spec, view
from tests.unit.config_example import GOOD
from tests.unit.test_agent_standing import SLAVE
from tests.unit.test_health_moves import word
from tests.unit.test_sensor_readings import SENSOR

pytestmark = pytest.mark.timeout(30)
FAST = replace(SENSOR, name="disk", kind="exec", exec=("/bin/true",), interval_ms=20,
               timeout_ms=20, fails=2, passes=2)  # fmt: skip


def config_of(folder: Path, *sensors: Sensor, health: HealthSection | None = None) -> Config:
    path = folder / "c.toml"
    path.write_text(GOOD)
    found = load_cluster(path).bound_to(0)
    return replace(found, sensors=sensors, health=health or HealthSection())


class Bench:
    """Sensors whose probes are played by hand."""

    def __init__(self, folder: Path, *sensors: Sensor, seen: View | None = None) -> None:
        self.changes = 0
        self.history = History()
        self.seen = seen
        config = config_of(folder, *sensors)
        self.sensors = Sensors(config, lambda: self.seen, self.history, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def play(self, name: str, probe: Callable[[], Awaitable[Reading]]) -> None:
        next(one for one in self.sensors.watched if one.spec.name == name).probe = probe

    async def until(self, state: str, name: str = "disk") -> None:
        async with asyncio.timeout(10):
            while {w.name: w.state for w in self.sensors.words()}[name] != state:
                await asyncio.sleep(0.005)


async def bad() -> Reading:
    return Reading(CRITICAL, "97 % used")


async def good() -> Reading:
    return Reading(OK, "fine")


def test_what_is_critical_is_said_and_taken_from_the_health_until_it_is_over(
    tmp_path: Path,
) -> None:
    """MS4."""

    async def scenario() -> None:
        bench = Bench(tmp_path, FAST)
        bench.play("disk", bad)
        assert bench.sensors.penalty == 0, "nothing is known yet"
        bench.sensors.start()
        await bench.until(CRITICAL)
        assert bench.sensors.penalty == 60
        (alarm,) = bench.sensors.alarms
        assert (alarm.name, alarm.text) == ("sensor", "disk on fs-a is critical: 97 % used")
        assert bench.sensors.unfit == "", "not required"
        bench.play("disk", good)
        await bench.until(OK)
        assert (bench.sensors.penalty, bench.sensors.alarms) == (0, [])
        assert bench.changes == 2
        said = [d.text for d in bench.history.last()]
        assert said == ["sensor disk on fs-a is critical: 97 % used",
                        "sensor disk on fs-a is ok: fine"]  # fmt: skip
        await bench.sensors.stop()

    asyncio.run(scenario())


def test_a_probe_that_never_comes_back_is_critical_and_is_not_started_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haclusterd.agent.sensors.GRACE_S", 0.01)

    async def scenario() -> None:
        bench = Bench(tmp_path, FAST, replace(FAST, name="other"))
        started = 0
        back = asyncio.Event()

        async def hang() -> Reading:
            nonlocal started
            started += 1
            await back.wait()
            return await good()

        bench.play("disk", hang)
        bench.play("other", good)
        bench.sensors.start()
        await bench.until(CRITICAL)
        await bench.until(OK, "other")
        await asyncio.sleep(0.2)
        assert started == 1
        back.set()
        await bench.until(OK)
        assert started > 1
        await bench.sensors.stop()

    asyncio.run(scenario())


def test_a_probe_that_breaks_takes_nothing_and_is_read_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, FAST)

        async def broken() -> Reading:
            raise RuntimeError("a bug of ours")

        bench.play("disk", good)
        bench.sensors.start()
        await bench.until(OK)
        bench.play("disk", broken)
        await bench.until("unknown")
        assert bench.sensors.penalty == 0
        assert "a bug of ours" in bench.sensors.alarms[0].text
        bench.play("disk", good)
        await bench.until(OK)
        await bench.sensors.stop()

    asyncio.run(scenario())


def test_an_event_of_freeswitch_counts_at_once(tmp_path: Path) -> None:
    """B29."""

    async def scenario() -> None:
        bench = Bench(tmp_path, replace(SENSOR, name="trunk"))
        headers = {"Event-Name": "CUSTOM", "Event-Subclass": "sofia::gateway_state"}
        await bench.sensors._event(Event({**headers, "Gateway": "trunk", "State": "DOWN"}))
        assert bench.sensors.penalty == 60
        await bench.sensors._event(Event({**headers, "Gateway": "trunk", "State": "REGED"}))
        assert bench.sensors.penalty == 0

    asyncio.run(scenario())


def test_other_nodes_sensors_and_witnesses_have_none(tmp_path: Path) -> None:
    assert Bench(tmp_path, replace(FAST, nodes=("fs-b",))).sensors.watched == []
    config = config_of(tmp_path, FAST)
    witness = msgspec.structs.replace(config.nodes[0], witness=True)
    config = replace(config, nodes=(witness, *config.nodes[1:]))
    assert Sensors(config, lambda: None, History(), lambda: None).watched == []


def test_who_asks_whom_by_options(tmp_path: Path) -> None:
    """MS10: oneself at own addresses, the others at theirs, nobody at what is unserved."""
    seen = view({"east": ("fs-a", 7), "west": ("fs-b", 1)})
    bench = Bench(tmp_path, seen=seen)
    assert bench.sensors._asked(True) == [("east", "203.0.113.10")]
    assert bench.sensors._asked(False) == [("west", "203.0.113.11")]
    assert bench.sensors._answers_for("east")
    bench.seen = view({"west": ("fs-b", 1)})
    assert bench.sensors._asked(True) == []
    assert not bench.sensors._answers_for("east")
    assert bench.sensors._answers_for("external"), "of no service: judged everywhere"


# -- what heart hears --


def test_sensors_lower_the_health_and_never_below_nothing() -> None:
    assert judge(spec(), replace(SLAVE, ailing=60)).health == 40
    assert judge(spec(), replace(SLAVE, ailing=300)).health == 0
    assert all(s.ready for s in judge(spec(), replace(SLAVE, ailing=300)).services), "MS11"


def test_a_required_sensor_makes_no_candidate_unless_nobody_else_is_there() -> None:
    """EG13: not a candidate; ML9: where all have lost it, somebody still serves."""
    unfit = replace(SLAVE, unfit="sensor nfs: /srv hangs")
    report = judge(spec(), unfit).services[0]
    assert (report.ready, report.reason) == (False, "sensor nfs: /srv hangs")
    owner = replace(unfit, owners={"east": ("fs-a", 7), "west": ("fs-c", 2)})
    assert judge(spec(), owner).services[0].ready, "a live master is not demoted"
    orphan = replace(unfit, owners={"east": ("", 7), "west": ("fs-c", 2)})
    assert not judge(spec(), replace(orphan, orphaned_s={"east": 2.0})).services[0].ready
    assert judge(spec(), replace(orphan, orphaned_s={"east": 3.1})).services[0].ready


# -- handing over --


POLICY = HealthSection(hand_over=True, better_by=30, after_s=30, every_s=600)


class Handing:
    """A node's health whose switchovers are played; the only sensor is critical."""

    def __init__(self, folder: Path, seen: View, fail: bool = False) -> None:
        self.orders: list[tuple[str, str | None]] = []
        self.words: dict[str, Word] = {}
        self.seen = seen
        self.fail = fail
        self.history = History()
        config = config_of(folder, replace(FAST, fails=1), health=POLICY)
        self.health = NodeHealth(config, lambda: self.seen, self.history, lambda: None,
                                 lambda: self.words, self.order)  # fmt: skip

    async def order(self, service: str, to: str | None) -> str:
        self.orders.append((service, to))
        if self.fail:
            raise OperatorError("no standby has acknowledged the last change")
        return "moved"

    async def pass_s(self, begin: int, end: int) -> None:
        loop = asyncio.get_running_loop()
        base = loop.time()
        one = self.health.sensors.watched[0]
        one.gauge.take(Reading(CRITICAL, "97 % used"), 0.0)
        for t in range(begin, end):
            await self.health.look(base + t)


def test_an_ill_master_orders_one_switchover(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Handing(tmp_path, word((40, 100, 100)))
        await bench.pass_s(0, 120)
        assert bench.orders == [("east", "fs-b")]
        assert bench.health.moves == {"done": 1, "refused": 0}
        assert any("health 40 by disk; fs-b has 100" in d.text for d in bench.history.last())
        lines = bench.health.why(bench.seen, {})
        assert lines[0] == "fs-a: health 40: disk critical -60 (97 % used)"
        assert "east stays: it was moved by health" in lines[1]

    asyncio.run(scenario())


def test_a_hand_over_that_is_refused_is_tried_again_once_a_minute(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Handing(tmp_path, word((40, 100, 100)), fail=True)
        await bench.pass_s(0, 160)
        assert len(bench.orders) == 3
        assert bench.health.moves == {"done": 0, "refused": 3}
        assert any("could not hand east over" in d.text for d in bench.history.last())

    asyncio.run(scenario())


def test_all_nodes_with_the_same_failing_sensor_move_nothing(tmp_path: Path) -> None:
    """ML9, MS11."""

    async def scenario() -> None:
        for healths in ((40, 40, 40), (0, 0, 0), (40, 40, 10)):
            bench = Handing(tmp_path, word(healths))
            await bench.pass_s(0, 500)
            assert bench.orders == []

    asyncio.run(scenario())


def test_what_others_say_of_their_sensors_explains_their_health(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Handing(tmp_path, word((100, 40, 100)))
        taken = SensorState("nfs", "mount", "critical", "/srv hangs", 60, True, "")
        words = {"fs-b": Word("1", Sync("none", 0), sensors=[taken])}
        assert bench.health.why(bench.seen, words) == [
            "fs-b: health 40: nfs critical -60 (/srv hangs)"
        ]

    asyncio.run(scenario())

"""`drain` and `maintenance --drain` as operators order them: on disk first, refused with a fix."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent.awaited import Awaited
from haclusterd.agent.history import History
from haclusterd.agent.maintaining import Maintaining
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.orders import Orders
from haclusterd.agent.schema import PARTLY
from haclusterd.config import Config, ConfigError, load
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent, MaintenanceRequested
from haclusterd.core.model import FOR_GOOD_US
from tests.fixtures.agent_parts import spec, view
from tests.unit.config_example import GOOD

pytestmark = pytest.mark.timeout(20)

MINUTE_US = 60_000_000


class Ordered:
    """Maintenance and drains on fs-a, down to the disk and heart."""

    def __init__(self, folder: Path, text: str = GOOD) -> None:
        path = folder / "haclusterd.toml"
        path.write_text(text)
        self.config: Config = load(path, node="fs-a", run_dir=folder)
        self.view = view({"east": ("fs-a", 7)})
        self.sent: list[FromAgent] = []
        self.operators = Operators(spec(), History(), lambda: self.view, self.send)
        self.orders = Orders(spec(), folder, lambda: self.view, self.operators.ask, self.send)
        self.operators.keep_maintenance = self.orders.keep_maintenance
        awaited = Awaited(
            spec(), folder, self.operators, History(), lambda: self.view,
            self.orders.keep_maintenance,
        )  # fmt: skip
        self.maintaining = Maintaining(
            self.config, spec(), self.operators, self.orders, lambda: self.view, awaited
        )

    def send(self, message: FromAgent) -> None:
        self.sent.append(message)
        if isinstance(message, MaintenanceRequested):
            answer = Answered(message.request, True, "in maintenance")
            asyncio.get_running_loop().call_soon(self.operators.answered, answer)


async def refused(work: Awaitable[str]) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        await work
    return caught.value


async def test_e10_maintenance_with_a_drain_is_on_disk_and_ends_with_off(tmp_path: Path) -> None:
    bench = Ordered(tmp_path)
    word = bench.maintaining.maintenance(True, "", 60 * MINUTE_US, 20 * MINUTE_US, "anna")
    with pytest.raises(OperatorError, match="fs-a is in maintenance, but: fs-a takes no new"):
        await word  # partly: two living nodes could not be told
    (kept,) = bench.orders.drains()
    assert (kept.target, kept.by) == ("node:fs-a", "anna on fs-a")
    assert 19 * MINUTE_US < kept.move_us <= 20 * MINUTE_US < kept.left_us <= 60 * MINUTE_US
    again = Orders(spec(), tmp_path, lambda: None, bench.operators.ask, bench.send)
    again.load()
    assert [d.target for d in again.drains()] == ["node:fs-a"]
    with pytest.raises(OperatorError, match="fs-a takes new calls again"):
        await bench.maintaining.maintenance(False, "fs-a", FOR_GOOD_US, None, "ben")
    assert bench.orders.drains() == []
    assert await bench.maintaining.maintenance(False, "fs-a", FOR_GOOD_US, None, "ben")


async def test_e10_what_is_on_the_disk_is_not_called_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heart may be busy; the next start of the agent tells it again."""
    bench = Ordered(tmp_path)

    async def silent(make: object) -> Answered:
        raise OperatorError("heart did not answer within 2 s")

    monkeypatch.setattr(bench.operators, "ask", silent)
    told = await refused(bench.operators.maintenance(True, "fs-a"))
    assert (told.code, "it is on the disk here" in str(told)) == (PARTLY, True)
    again = Orders(spec(), tmp_path, lambda: None, bench.operators.ask, bench.sent.append)
    again.load()
    assert bench.sent[-1] == MaintenanceRequested(-1, True, FOR_GOOD_US)


async def test_e10_an_end_whose_drain_stays_is_told_as_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maintenance is over on heart's side: "not done" alone would be wrong."""
    bench = Ordered(tmp_path)
    await refused(bench.maintaining.maintenance(True, "", FOR_GOOD_US, MINUTE_US, "anna"))

    async def full(target: str, by: str) -> str:
        raise OperatorError("not done: orders.json: No space left on device")

    monkeypatch.setattr(bench.orders, "undrain", full)
    told = await refused(bench.maintaining.maintenance(False, "fs-a", FOR_GOOD_US, None, "ben"))
    assert told.code == PARTLY
    assert str(told).startswith("fs-a is in maintenance, but: not done: orders.json")


async def test_e10_what_makes_no_sense_is_refused_with_the_next_step(tmp_path: Path) -> None:
    bench = Ordered(tmp_path)
    order = bench.maintaining.maintenance
    error = await refused(order(True, "", MINUTE_US, MINUTE_US, "anna"))
    assert error.code == "usage"
    assert "give it less time" in str(error)
    error = await refused(order(True, "fs-x", FOR_GOOD_US, MINUTE_US, "anna"))
    assert "known: fs-a, fs-b, fs-c" in str(error)
    seen = bench.view
    alone = tuple(msgspec.structs.replace(s, successors=()) for s in seen.services)
    bench.view = msgspec.structs.replace(seen, services=alone)
    error = await refused(order(True, "", FOR_GOOD_US, MINUTE_US, "anna"))
    assert "no node is ready to take east" in str(error)
    assert "rank --why" in str(error)
    assert bench.sent == []
    assert bench.orders.drains() == []


async def test_b7_a_drain_that_cannot_be_is_refused(tmp_path: Path) -> None:
    bench = Ordered(tmp_path)
    assert "maintenance on fs-b" in str(await refused(bench.maintaining.drain("fs-b", 5, "a")))
    assert "is not drained" in str(await refused(bench.maintaining.undrain("east", "a")))
    assert (await refused(bench.maintaining.drain("east", 5, "a"))).code == "partly"  # it is done
    bench.orders._agreed.order_drain("node:fs-a", FOR_GOOD_US, "a", 0, 5)
    error = await refused(bench.maintaining.drain("fs-a", FOR_GOOD_US, "a"))
    assert "maintenance off fs-a" in str(error)
    without = Ordered(tmp_path, GOOD.replace("esl_port = 8021", "esl_port = 0"))
    error = await refused(without.maintaining.drain("east", FOR_GOOD_US, "a"))
    assert "without ESL" in str(error)
    assert "switchover" in str(error)
    plain = msgspec.structs.replace(
        spec(), services=tuple(msgspec.structs.replace(s, profiles=()) for s in spec().services)
    )
    bench.maintaining._spec = plain
    error = await refused(bench.maintaining.drain("east", FOR_GOOD_US, "a"))
    assert "`haclusterctl switchover east`" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("[timing]", 'maintenance_service = "wst"\n[timing]', "is no service"),
        ("[timing]", 'maintenance_service = "east"\n[timing]', "the only service"),
        (
            "[timing]",
            'maintenance_service = "east"\nlast_resort = "none"\n[timing]',
            "one more service",
        ),
        ("[timing]", 'maintenance_service = "east"\n[timing]', ""),
    ],
)
def test_b6_a_maintenance_service_that_cannot_work_is_refused(
    tmp_path: Path, old: str, new: str, text: str
) -> None:
    path = tmp_path / "haclusterd.toml"
    west = '[[service]]\nname = "west"\naddresses = ["203.0.113.11/24 dev eth0"]\n'
    path.write_text(GOOD.replace(old, new, 1) + (west if text != "the only service" else ""))
    if not text:
        assert load(path, node="fs-a").maintenance_service == "east"
        return
    with pytest.raises(ConfigError, match=text):
        load(path, node="fs-a")

"""`maintenance off` of a node that is away: kept by the others, in force when it is back (B7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import awaited as module
from haclusterd.agent.awaited import FILE_NAME, Awaited, AwaitedWord
from haclusterd.agent.history import History
from haclusterd.agent.maintaining import Maintaining
from haclusterd.agent.operators import OperatorError, Operators
from haclusterd.agent.orders import Orders
from haclusterd.config import load
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent, MaintenanceRequested
from haclusterd.core.model import FOR_GOOD_US
from haclusterd.core.view import View
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import spec, view
from tests.unit.config_example import GOOD

pytestmark = pytest.mark.timeout(20)
NAMES = ("fs-a", "fs-b", "fs-c")


class Host:
    """One node's agent, as far as maintenance goes; its heart does as told."""

    def __init__(self, cluster: Cluster, me: int) -> None:
        self.cluster, self.me, self.name = cluster, me, NAMES[me]
        self.folder = cluster.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self.on = False  # what heart knows
        self.start()

    def start(self) -> None:
        path = self.folder / "haclusterd.toml"
        path.write_text(GOOD)
        config = load(path, node=self.name, run_dir=self.folder)
        self.history = History()
        self.methods: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.operators = Operators(spec(self.me), self.history, self.view, self.send)
        self.orders = Orders(spec(self.me), self.folder, self.view, self.operators.ask, self.send)
        self.awaited = Awaited(
            spec(self.me), self.folder, self.operators, self.history, self.view,
            self.orders.keep_maintenance,
        )  # fmt: skip
        self.operators.keep_maintenance = self.awaited.keep_maintenance
        self.maintaining = Maintaining(
            config, spec(self.me), self.operators, self.orders, self.view, self.awaited
        )
        self.orders.load()
        for part in (self.operators, self.orders, self.awaited):
            part.join(self)

    def view(self) -> View:
        seen = view({"east": ("fs-a", 7)}, me=self.name)
        nodes = tuple(
            msgspec.structs.replace(n, role="dead", silent_us=9_000_000)
            if n.id in self.cluster.away else n
            for n in seen.nodes
        )  # fmt: skip
        return msgspec.structs.replace(seen, nodes=nodes)

    def send(self, message: FromAgent) -> None:
        if isinstance(message, MaintenanceRequested):
            self.on = message.on
            text = "in maintenance" if message.on else "out of maintenance"
            answer = Answered(message.request, True, text)
            asyncio.get_running_loop().call_soon(self.operators.answered, answer)

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.methods[method] = answer

    async def wait_acked(self, service: str, timeout_ms: int) -> bool:
        return True

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        if node in self.cluster.away | self.cluster.deaf:
            raise RequestFailed("not connected to that node")
        return await self.cluster.hosts[node].methods[method](self.name, payload)

    async def hears(self, other: Host) -> None:
        """As `peers` does every two seconds."""
        await self.awaited.heard(other.awaited.words())

    async def off(self, node: str) -> str:
        return await self.maintaining.maintenance(False, node, FOR_GOOD_US, None, "anna")


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away: set[str] = set()
        self.deaf: set[str] = set()
        self.hosts: dict[str, Host] = {}
        for me, name in enumerate(NAMES):
            self.hosts[name] = Host(self, me)


def is_on(host: Host) -> bool:
    return host.on


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


async def lost_in_maintenance(cluster: Cluster) -> tuple[Host, Host, Host]:
    a, b, c = cluster.hosts.values()
    await a.maintaining.maintenance(True, "fs-c", FOR_GOOD_US, None, "anna")
    for other in (a, b):
        await other.hears(c)
    cluster.away = {"fs-c"}
    return a, b, c


async def test_b7_it_is_out_of_maintenance_when_it_is_back(cluster: Cluster) -> None:
    a, b, c = await lost_in_maintenance(cluster)
    assert "out of maintenance as soon as it is back" in await a.off("fs-c")
    cluster.away = {"fs-a"}  # who gave the order is lost; another one kept it
    c.start()
    assert is_on(c), "as its own disk has it"
    await c.hears(b)
    assert not is_on(c)
    assert "anna on fs-a ended it" in c.history.last(1)[0].text
    c.start()
    await c.hears(b)
    assert c.history.last(1) == [], "once"


async def test_b7_what_was_ordered_since_stands(cluster: Cluster) -> None:
    a, b, c = await lost_in_maintenance(cluster)
    await a.off("fs-c")
    cluster.away = set()
    c.start()
    await c.hears(a)
    await b.maintaining.maintenance(True, "fs-c", FOR_GOOD_US, None, "ben")
    for other in (a, b):
        await c.hears(other)
        await other.hears(c)
    c.start()
    await c.hears(a)
    assert is_on(c)
    cluster.away = {"fs-c"}
    await b.off("fs-c")
    cluster.away = set()
    await c.hears(b)
    assert not is_on(c), "a later order counts again"


async def test_b7_the_order_is_on_disk_before_it_is_done(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ML10."""
    a, b, _ = await lost_in_maintenance(cluster)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_replace", full)
        with pytest.raises(OperatorError, match=r"not done: .*No space left"):
            await a.off("fs-c")
        await b.awaited.heard([AwaitedWord("fs-c", 2**52, "anna")])
    assert {w.by for h in (a, b) for w in h.awaited.words()} == {""}, "its own order only"
    await a.off("fs-c")
    for host in (a, b):
        host.start()
        assert [(w.node, w.by) for w in host.awaited.words()] == [("fs-c", "anna on fs-a")]


async def test_b7_who_lives_and_was_not_told_is_named_and_the_drain_ends_all_the_same(
    cluster: Cluster,
) -> None:
    a, b, c = cluster.hosts.values()
    await a.orders.drain("node:fs-c", FOR_GOOD_US, "anna")
    cluster.away, cluster.deaf = {"fs-c"}, {"fs-b"}
    with pytest.raises(OperatorError, match=r"fs-b could not be told.*takes new calls again"):
        await a.off("fs-c")
    cluster.deaf = set()
    assert "as soon as it is back" in await a.off("fs-c")
    assert a.orders.drains() == []
    await b.hears(a)
    assert [w.node for w in b.awaited.words()] == ["fs-c"]
    assert not is_on(c)


async def test_b7_a_node_that_lives_and_cannot_be_asked_is_no_node_that_is_away(
    cluster: Cluster,
) -> None:
    a = cluster.hosts["fs-a"]
    cluster.deaf = {"fs-c"}
    with pytest.raises(OperatorError, match="fs-c could not be asked"):
        await a.off("fs-c")
    assert a.awaited.words() == []
    with pytest.raises(OperatorError, match="there is no node fs-x") as caught:
        await a.off("fs-x")
    assert caught.value.code == "usage"


async def test_b7_words_that_make_no_sense_are_left_aside(cluster: Cluster) -> None:
    a = cluster.hosts["fs-a"]
    bad = [
        AwaitedWord("fs-x", 1, "anna"), AwaitedWord("fs-c", 0, "anna"),
        AwaitedWord("fs-c", 2**60, "anna"), AwaitedWord("fs-c", 1, "a\nb"),
        AwaitedWord("fs-c", 1, "a" * 100),
    ]  # fmt: skip
    await a.awaited.heard(bad)
    assert a.awaited.words() == []
    with pytest.raises(msgspec.ValidationError):
        await a.methods[module.METHOD]("fs-b", b'{"node": 1}')


@pytest.mark.parametrize("content", ["{", '{"format":1,"cluster":"x"}', '{"format":9}'])
async def test_b7_a_damaged_file_brings_no_old_order_back(cluster: Cluster, content: str) -> None:
    a, _, c = await lost_in_maintenance(cluster)
    await a.off("fs-c")
    cluster.away = set()
    (c.folder / FILE_NAME).write_text(content)
    await asyncio.sleep(0.005)  # versions are ms
    c.start()
    await c.hears(a)
    assert is_on(c), "nobody knows whether it was before or after"


async def stopped_in(node: Host, work: Awaitable[object]) -> None:
    """`work` is cancelled while `node` writes its own maintenance."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def keep(on: bool, left_us: int) -> None:
        begun.set()
        await never.wait()

    node.awaited._keep, kept = keep, node.awaited._keep
    task = asyncio.ensure_future(work)
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    node.awaited._keep = kept


async def test_b7_an_end_that_was_cut_short_is_obeyed_all_the_same(cluster: Cluster) -> None:
    """Its agent was stopped between the two files."""
    a, _, c = await lost_in_maintenance(cluster)
    await a.off("fs-c")
    cluster.away = set()
    c.start()
    await stopped_in(c, c.hears(a))
    c.start()
    await c.hears(a)
    assert not is_on(c)


async def test_b7_an_end_is_obeyed_although_the_connection_of_who_told_it_is_lost(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, c = await lost_in_maintenance(cluster)
    await a.off("fs-c")
    cluster.away = set()
    c.start()
    begun, go_on = asyncio.Event(), asyncio.Event()
    keep = c.awaited._keep

    async def slowly(on: bool, left_us: int) -> None:
        begun.set()
        await go_on.wait()
        await keep(on, left_us)

    monkeypatch.setattr(c.awaited, "_keep", slowly)
    asking = asyncio.ensure_future(
        c.methods[module.METHOD]("fs-a", msgspec.json.encode(a.awaited.words()))
    )
    await begun.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()
    async with asyncio.timeout(5):
        while is_on(c):
            await asyncio.sleep(0.01)


async def test_b7_who_cannot_be_named_is_told_so(cluster: Cluster) -> None:
    """It was called done, and kept nowhere."""
    a, _, _ = await lost_in_maintenance(cluster)
    with pytest.raises(OperatorError, match="printable"):
        await a.maintaining.maintenance(False, "fs-c", FOR_GOOD_US, None, "an\nna")

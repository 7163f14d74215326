"""Wall clocks that differ are measured, remembered and said."""

from __future__ import annotations

import asyncio

import pytest

from haclusterd.agent import wall_clocks
from haclusterd.agent.wall_clocks import WallClocks
from haclusterd.sync.rpc import Answer, RequestFailed


class Mesh:
    """Peers whose clocks are `ahead_s`; one that is not there is lost."""

    def __init__(self) -> None:
        self.ahead_s = {"b": 0.0}
        self.wall_s = 1_800_000_000.0
        self.delay_s = 0.0
        self.said: bytes | None = None
        self.answer: Answer | None = None

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        await asyncio.sleep(self.delay_s)
        if node not in self.ahead_s:
            raise RequestFailed("gone")
        return self.said or f"{self.wall_s + self.ahead_s[node]}".encode()

    def register(self, method: str, answer: Answer) -> None:
        self.answer = answer


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def clocks(mesh: Mesh, news: list[str]) -> WallClocks:
    return WallClocks("a", ["a", "b", "c"], mesh, news.append, lambda: mesh.wall_s)


async def test_a_clock_elsewhere_is_news_once_and_stays_known(mesh: Mesh) -> None:
    news: list[str] = []
    one = clocks(mesh, news)
    await one._ask("b")
    await one._ask("c")
    assert (one.ahead_s("b"), one.ahead_s("c"), one.problem, news) == (0, 0, "", [])
    mesh.ahead_s["b"] = 45.4
    for _ in range(3):
        await one._ask("b")
    assert (one.ahead_s("b"), news) == (45, ["b"])
    assert "b's is 45 s ahead" in one.problem
    mesh.ahead_s["b"] = 45.9
    await one._ask("b")
    assert (one.ahead_s("b"), news) == (45, ["b"]), "no new conversion for half a second"
    del mesh.ahead_s["b"]
    await one._ask("b")
    assert one.ahead_s("b") == 45, "it is needed when the node is lost"
    mesh.ahead_s["b"] = -1.5
    await one._ask("b")
    assert (one.ahead_s("b"), one.problem, news) == (-2, "", ["b", "b"])


@pytest.mark.parametrize("said", [b"", b"soon", b"nan", b"inf", b"1e300", b"\xff"])
async def test_s_what_is_no_time_is_no_clock(mesh: Mesh, said: bytes) -> None:
    news: list[str] = []
    one, mesh.said = clocks(mesh, news), said
    await one._ask("b")
    assert (one.ahead_s("b"), one.problem, news) == (0, "", [])


async def test_a_slow_answer_says_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall_clocks, "SURE_S", 0.01)
    news: list[str] = []
    one = clocks(mesh, news)
    mesh.ahead_s["b"], mesh.delay_s = 45.0, 0.03
    await one._ask("b")
    assert news == []


async def test_it_asks_for_ever_and_answers(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall_clocks, "FIRST_S", 0.01)
    news: list[str] = []
    one = clocks(mesh, news)
    mesh.ahead_s["b"] = 3.0
    await one.start()
    async with asyncio.timeout(3):
        while not news:
            await asyncio.sleep(0.01)
    await one.stop()
    assert mesh.answer is not None
    assert float(await mesh.answer("b", b"")) == mesh.wall_s

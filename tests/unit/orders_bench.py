"""An agent's orders on fs-a, with a heart and other agents that answer as the test says."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from haclusterd.agent import giving
from haclusterd.agent import orders as module
from haclusterd.agent.operators import OperatorError
from haclusterd.agent.orders import Orders
from haclusterd.agent.orders_file import FILE_NAME
from haclusterd.core.actions import Answered
from haclusterd.core.inputs import FromAgent
from haclusterd.core.view import View
from haclusterd.sync.rpc import RequestFailed
from tests.fixtures.agent_parts import spec, view

HOUR_US = 3_600_000_000


def seen(dead: tuple[str, ...] = (), **changes: object) -> View:
    """fs-a, b and c; these are dead."""
    word = view({"east": ("fs-a", 7)})
    nodes = tuple(
        msgspec.structs.replace(n, role="dead", silent_us=10**9, unheard_us=10**9)
        if n.id in dead else n
        for n in word.nodes
    )  # fmt: skip
    return msgspec.structs.replace(word, nodes=nodes, **changes)


class Bench:
    """An agent on fs-a; `disk` at each message to heart and to others: what was kept by then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.view: View = seen()
        self.sent: list[FromAgent] = []
        self.asked: list[tuple[str, str]] = []
        self.disk: list[str] = []
        self.heart = Answered(0, True, "done")
        self.hears: bytes = b"no"
        self.away: set[str] = set()
        self.methods: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}
        self.orders = Orders(spec(), folder, lambda: self.view, self.ask, self.sent.append)
        self.orders.join(self)

    def host_restarts(self) -> Bench:
        """The agent of the next boot, before heart's first word."""
        path = self.folder / FILE_NAME
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({**kept, "boot_id": "another"}))
        return self.starts_again()

    def starts_again(self) -> Bench:
        again = Bench(self.folder)
        again.view = self.view
        again.orders.load()
        return again

    def kept(self) -> str:
        path = self.folder / FILE_NAME
        return path.read_text() if path.exists() else ""

    async def ask(self, make: Callable[[int], FromAgent]) -> Answered:
        self.disk.append(self.kept())
        self.sent.append(make(5))
        return self.heart

    async def request(self, node: str, method: str, payload: bytes, timeout_ms: int) -> bytes:
        self.disk.append(self.kept())
        self.asked.append((node, method))
        if node in self.away:
            raise RequestFailed(f"{node}: gone")
        return self.hears if method == "hears" else b"{}"

    def register(self, method: str, answer: Callable[[str, bytes], Awaitable[bytes]]) -> None:
        self.methods[method] = answer


async def refused(work: Awaitable[str]) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        await work
    return caught.value


def bench_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Its wall clock stands still."""
    for one in (module, giving):
        monkeypatch.setattr(one, "wall_s", lambda: 1)
    return Bench(folder)

"""What the kernel tells heart, where it cannot tell all of it."""

from __future__ import annotations

from typing import Any, cast

from haclusterd.heart.errors import HeartError
from haclusterd.heart.executor import Executor
from haclusterd.heart.kernel_news import KernelNews
from haclusterd.heart.loop import Loop
from haclusterd.heart.netlink import Address, Link
from haclusterd.heart.parts import Parts


class Host:
    """The parts that the news go through, and a kernel that refuses a listing `refusals` times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.addresses = self.events = self.node = self.journal = self
        self.ruleset = self.fence = None
        self.services: list[Any] = []
        self.last_us = 0
        self.lost = True
        self.listed = 0
        self.said: list[str] = []

    def receive(self) -> tuple[list[Link | Address], bool]:
        lost, self.lost = self.lost, False
        return [], lost

    def refresh_links(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise HeartError("rtnetlink listing: Cannot allocate memory")
        self.listed += 1

    def sockets(self) -> list[tuple[int, str]]:
        return []

    def listen_again(self) -> None: ...
    def watch_fence(self) -> None: ...

    def say(self, text: str, level: int = 6) -> None:
        self.said.append(text)


def test_a_listing_that_fails_is_made_again_and_ends_no_heart() -> None:
    host = Host(refusals=2)
    parts = cast(Parts, host)
    news = KernelNews(cast(Loop, host), cast(Executor, host), parts, lambda: None)
    news._netlink_changed()
    assert host.listed == 0
    assert len(host.said) == 1
    assert "Cannot allocate memory" in host.said[0]
    for _second in range(3):
        news.look()
    assert host.listed == 1, "once more, and once is enough"

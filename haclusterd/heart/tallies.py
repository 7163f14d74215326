"""What the links received, by outcome, and the alarm for a peer of which nothing can be read.

Datagrams that do not open change counters and nothing else. But a node whose key file is the wrong
one looks to the others exactly like a dead one, so that has to be said: by whom, over which link,
and what to compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from haclusterd.core.model import ClusterSpec
from haclusterd.core.view import AlarmView, LinkTally, PeerTally
from haclusterd.heart.journal import WARNING
from haclusterd.heart.links import Links
from haclusterd.wire import Heard, Outcome, Wire

UNREADABLE_US = 3_000_000  # without a readable beat, until it is an alarm
FORGET_US = 10_000_000  # after the last unreadable datagram: then the peer is merely silent
SAY_EVERY_US = 60_000_000  # per peer and link

_KEY = (
    "compare `sha256sum` of key_file on both nodes, copy the right file (mode 0600) and restart "
    "haclusterd there"
)
_CAUSES = {
    Outcome.BAD_MAC: f"its cluster key, or its id in haclusterd.toml, is another one: {_KEY}",
    Outcome.UNKNOWN_KEY: f"its cluster key is another one: {_KEY}",
    Outcome.FOREIGN: (
        "it is of another cluster, or its [[node]] sections or links are in another order: "
        "install the same haclusterd.toml on both nodes"
    ),
    Outcome.VERSION: "it speaks another version: install the same haclusterd on both nodes",
    Outcome.OTHER_CONFIG: (
        "nodes, services or times are others in its file, or in another order: install the same "
        "haclusterd.toml on both nodes and restart haclusterd"
    ),
    Outcome.MALFORMED: (
        "these are no heartbeats: another program, or a damaging network; see `ss -lunp` there"
    ),
    Outcome.OVERSIZE: (
        "these are no heartbeats: another program sends from there; see `ss -lunp` there"
    ),
}
_ALL = ". No peer can be read: this node's own key file or configuration is probably the wrong one"


class _Source:
    """One peer's address on one link: what was counted when, and since when it is an alarm."""

    __slots__ = ("heard_us", "outcome", "readable", "said", "said_us", "unreadable",
                 "unreadable_us")  # fmt: skip

    def __init__(self, now_us: int) -> None:
        self.readable = self.unreadable = 0
        self.heard_us = now_us  # readable
        self.unreadable_us = now_us - FORGET_US - 1
        self.said_us = now_us - SAY_EVERY_US
        self.said = False
        self.outcome: Outcome | None = None  # of the alarm that stands

    def look(self, heard: Heard, now_us: int) -> bool:
        """Take in the counters as they are now; whether the alarm came or went."""
        before = self.outcome
        if heard.readable != self.readable:
            self.readable, self.heard_us = heard.readable, now_us
        if heard.unreadable != self.unreadable:
            self.unreadable, self.unreadable_us = heard.unreadable, now_us
        silent = now_us - self.heard_us >= UNREADABLE_US
        standing = silent and now_us - self.unreadable_us <= FORGET_US
        self.outcome = heard.outcome if standing else None
        return (before is None) != (self.outcome is None)


class Tallies:
    """`look` once a second; `alarms` and the tallies for whoever asks what was seen."""

    def __init__(
        self,
        spec: ClusterSpec,
        wire: Wire,
        links: Links,
        say: Callable[[str, int], None],
        now_us: int,
    ) -> None:
        self._spec, self._wire, self._links, self._say = spec, wire, links, say
        self._sources = {
            (n, link): _Source(now_us)
            for n in range(len(spec.nodes))
            if n != spec.me
            for link in range(spec.links)
        }

    def look(self, now_us: int) -> None:
        """Judge what came since the last look; say what began or ended, at a bounded rate."""
        changed = [
            (place, source)
            for place, source in self._sources.items()
            if source.look(self._wire.heard[place[1]][place[0]], now_us)
        ]
        for (n, link), source in changed:
            if source.outcome is not None and now_us - source.said_us >= SAY_EVERY_US:
                source.said, source.said_us = True, now_us
                self._say(self._sentence(n, link, source.outcome), WARNING)
            elif source.outcome is None and source.said:
                source.said = False
                if source.heard_us == now_us:
                    self._say(f"beats of {self._place(n, link)} can be read again", WARNING)

    def alarms(self, behind: bool = False) -> list[AlarmView]:
        """One for each peer and link of which only unreadable datagrams come. `behind`: others
        count by a later revision, whose beats are no riddle."""
        return [
            AlarmView("unreadable_peer", self._sentence(n, link, source.outcome))
            for (n, link), source in self._sources.items()
            if source.outcome is not None
            and not (behind and source.outcome is Outcome.OTHER_CONFIG)
        ]

    def of_links(self) -> tuple[LinkTally, ...]:
        """By own link. `alien_source`: from an address that no configured peer has there."""
        found = []
        for link, address in enumerate(self._spec.nodes[self._spec.me].links):
            socket = dataclasses.asdict(self._links.counters(link))
            received = {o.name.lower(): n for o, n in self._wire.counters[link].items()}
            received["alien_source"] = socket.pop("alien_sources")
            received["oversize"] += socket.pop("oversized")
            del socket["received"]  # the sum of those that were opened or refused above
            found.append(LinkTally(address, received, socket))
        return tuple(found)

    def of_peers(self) -> tuple[PeerTally, ...]:
        """By peer and link."""
        found = []
        for (n, link), source in self._sources.items():
            heard = self._wire.heard[link][n]
            now = "" if source.outcome is None else source.outcome.value
            node = self._spec.nodes[n]
            found.append(
                PeerTally(node.id, node.links[link], heard.readable, heard.unreadable, now)
            )
        return tuple(found)

    def _place(self, n: int, link: int) -> str:
        node = self._spec.nodes[n]
        return f"{node.id} on link {link + 1} ({node.links[link]})"

    def _sentence(self, n: int, link: int, outcome: Outcome) -> str:
        unreadable = {k for (k, _), source in self._sources.items() if source.outcome is not None}
        alone = len(unreadable) == len(self._spec.nodes) - 1 > 1
        return (
            f"datagrams come from {self._place(n, link)}, but none can be read ({outcome.value}): "
            f"{_CAUSES[outcome]}{_ALL if alone else ''}"
        )

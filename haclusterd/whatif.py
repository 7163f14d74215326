"""What if: the present cluster, built in memory of production cores, loses something.

One core per living node starts from what this node knows of it: owners, epochs, health, calls,
readiness, links. They beat to each other over a network that loses nothing, settle, and then the
failure is applied. What they decide is what the same code would decide on this view: no promise,
because the view is one node's, and hosts, kernels and FreeSWITCHes are taken to do as told.
"""

from __future__ import annotations

import copy
import heapq
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from haclusterd.core import reconfigure
from haclusterd.core.actions import (
    Action,
    AddAddresses,
    CloseFence,
    Decided,
    KillFreeswitch,
    RemoveAddresses,
    SendBeat,
)
from haclusterd.core.inputs import (
    AddressesAdded,
    AddressesRemoved,
    AgentChanged,
    FenceClosed,
    FreeswitchExited,
    Input,
    LocalReport,
    MaintenanceRequested,
    PauseOrdered,
    Received,
    ServiceReport,
    StopRequested,
    Tick,
)
from haclusterd.core.model import NOBODY, NOBODY_NODE, Beat, Flag, Identity, State
from haclusterd.core.node import next_deadline_us, step
from haclusterd.core.ranking import Facts as Word
from haclusterd.core.standing import facts
from haclusterd.core.state import NEVER, Node, is_paused, owns, start
from haclusterd.unserved import why_unserved, why_without_freeswitch

PHASES = 4  # where in a heartbeat the failure strikes changes the times, and now and then more
SETTLE_DEADS = 4  # in units of dead_ms: until the model stands as the cluster does
FAIL_DEADS = 12  # and how long it is watched after the failure
DELAY_US = 100
QUIET = frozenset({"M1", "M2", "M3"})
SENTENCES_MAX = 200


class WhatIfError(Exception):
    """The question cannot be answered; the message says why and what to do."""


class Failure(msgspec.Struct, frozen=True):
    """What goes wrong at once, by index: nodes lost, FreeSWITCHes that exit, nodes that are
    stopped as planned, heartbeat NICs that no node can use any more."""

    nodes: tuple[int, ...] = ()
    freeswitches: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    links: tuple[int, ...] = ()


class Sentence(msgspec.Struct, frozen=True):
    """A decision, `at_ms` after the failure."""

    at_ms: float
    node: str
    row: str
    text: str


class Fate(msgspec.Struct, frozen=True):
    """What became of a service. `owner` null: unserved, and `reason` says why; where there is an
    owner, `reason` is empty unless no FreeSWITCH runs there.

    `outcome` in kept, interrupted (back at the same owner), moved, unserved, overlapping.
    `after_ms` is the least and the most over the phases, null where nothing changed hands.
    """

    service: str
    was: str | None
    owner: str | None
    outcome: str
    after_ms: tuple[float, float] | None
    reason: str
    also: tuple[str, ...]  # owners in other phases, or beside it


class Answer(msgspec.Struct, frozen=True):
    """What the cores decided; `sentences` are those of the first phase."""

    seen_from: str
    services: tuple[Fate, ...]
    sentences: tuple[Sentence, ...]


def what_if(node: Node, at_us: int, failure: Failure) -> Answer:
    """Apply `failure` to the cluster as `node` sees it at `at_us`. Raises WhatIfError."""
    now = _owners_seen(node, at_us)
    timing = node.spec.timing
    settled = _Model(node, at_us, now)
    settled.run_until(at_us + SETTLE_DEADS * timing.dead_us)
    _must_be_settled(node, settled, now)
    runs = []
    for phase in range(PHASES):
        model = copy.deepcopy(settled)
        failed_us = model.now + phase * timing.heartbeat_us // PHASES
        model.run_until(failed_us)
        model.said.clear()
        model.fail(failure)
        model.run_until(failed_us + FAIL_DEADS * timing.dead_us)
        runs.append((model, failed_us))
    fates = tuple(_fate(node, k, now[k], runs) for k in range(len(node.spec.services)))
    model, failed_us = runs[0]
    sentences = tuple(
        Sentence((t - failed_us) / 1000, node.spec.nodes[n].id, what.row, what.text)
        for t, n, what in model.said
        if what.row not in QUIET
    )
    return Answer(node.spec.nodes[node.spec.me].id, fates, sentences[:SENTENCES_MAX])


def _owners_seen(node: Node, at_us: int) -> list[Identity]:
    """By service who owns it, as `node` knows it; NOBODY where nobody does."""
    found = []
    for k, service in enumerate(node.services):
        best = service.identity if owns(service) else NOBODY
        for n, peer in enumerate(node.peers):
            if n == node.spec.me or not peer.alive or not peer.services:
                continue
            entry = peer.services[k]
            if entry.state in (State.ACQUIRING, State.OWNED) and entry.promise.node == n:
                best = max(best, entry.promise)
        found.append(best)
    return found


def _must_be_settled(node: Node, model: _Model, seen: Sequence[Identity]) -> None:
    wrong = []
    for k, spec in enumerate(node.spec.services):
        holders = model.owners(k)
        if seen[k] != NOBODY and holders != [seen[k].node]:
            names = ", ".join(node.spec.nodes[n].id for n in holders) or "nobody"
            wrong.append(
                f"{spec.name} is at {node.spec.nodes[seen[k].node].id} here, in it {names}"
            )
    if wrong:
        raise WhatIfError(
            "the cluster is in motion, or no majority is in reach: the model does not settle into "
            f"its present owners ({'; '.join(wrong)}); ask again when `haclusterctl status` is calm"
        )


# -- the model -----------------------------------------------------------------------------------


class _Model:
    """Cores and a network. `said` is (us, node, decision)."""

    def __init__(self, seen: Node, at_us: int, owners: Sequence[Identity]) -> None:
        self.now = at_us
        self.said: list[tuple[int, int, Decided]] = []
        self._seen = seen
        self._wire: list[tuple[int, int, int, int, Beat]] = []
        self._sent = 0
        self._cut: set[int] = set()
        self._ticked: dict[int, int] = {}
        self.nodes: dict[int, Node] = {}
        words = facts(seen, at_us)
        for n, word in enumerate(words):
            if n == seen.spec.me or (word.alive and not word.flags & Flag.LEAVING):
                self._join(n, word, owners)

    def _join(self, n: int, word: Word, owners: Sequence[Identity]) -> None:
        """A node as it stands: past its hold-down, owning what it owns."""
        seen, now = self._seen, self.now
        config_hash = seen.spec.config_hash
        if n != seen.spec.me:
            config_hash = seen.peers[n].config_hash
        spec = msgspec.structs.replace(seen.spec, me=n, config_hash=config_hash)
        node = start(spec, now - spec.timing.hold_down_us - 1, incarnation=n + 1)
        node.ran_us = now  # all the while
        reconfigure.begin(node, proven=True, kin=seen.roll.kin)
        node.roll.blind = seen.roll.blind
        node.next_beat_us = node.wake_us = now
        for k, identity in enumerate(owners):
            _stand(node, k, identity if identity != NOBODY else seen.services[k].promise,
                   identity != NOBODY, now)  # fmt: skip
        self.nodes[n] = node
        self._ticked[n] = now
        reports = tuple(ServiceReport(e.ready, _reason(seen, n, k), e.calls)
                        for k, e in enumerate(word.services))  # fmt: skip
        up = bool(word.flags & Flag.FREESWITCH_UP)
        self.give(n, AgentChanged(bool(word.flags & Flag.AGENT_UP)))
        self.give(n, LocalReport(up, 1, word.health, word.load, word.calls,
                                 bool(word.flags & Flag.SYNCING), reports))  # fmt: skip
        if word.flags & Flag.MAINTENANCE:
            self.give(n, MaintenanceRequested(-1, True))
        node.marks, node.marked = seen.marks, seen.marked
        node.unvoting, node.left_out = seen.unvoting, seen.left_out
        node.by_marks_us = seen.by_marks_us
        if word.flags & Flag.PAUSED and is_paused(seen, now):
            left_us = seen.paused_until_us - now
            self.give(n, PauseOrdered(-1, seen.pause_version, left_us, seen.paused_by))

    def owners(self, k: int) -> list[int]:
        """Who holds service `k` now."""
        return [n for n, node in self.nodes.items() if owns(node.services[k])]

    def fail(self, failure: Failure) -> None:
        """All at this instant."""
        self._cut.update(failure.links)
        for n in failure.nodes:
            self.nodes.pop(n, None)
        for n in failure.freeswitches:
            self.give(n, FreeswitchExited())
        for n in failure.stops:
            self.give(n, StopRequested())

    def run_until(self, end_us: int) -> None:
        """Deliver and tick in the order of time; at one time what was received goes first."""
        while True:
            tick_us, n = min(
                ((max(next_deadline_us(node), self._ticked[n] + 1), n)
                 for n, node in self.nodes.items()),
                default=(end_us, -1),
            )  # fmt: skip
            heard_us = self._wire[0][0] if self._wire else end_us
            at_us = min(tick_us, heard_us)
            if at_us >= end_us:
                break
            self.now = max(self.now, at_us)
            if heard_us <= tick_us:
                _, _, to, link, beat = heapq.heappop(self._wire)
                self.give(to, Received(link, beat))
            else:
                self._ticked[n] = self.now
                self.give(n, Tick())
        self.now = end_us

    def give(self, n: int, event: Input) -> None:
        """One node takes an input in; its kernel and its FreeSWITCH obey at once."""
        node = self.nodes.get(n)
        events = deque([event])
        while node is not None and events:
            _, actions = step(node, events.popleft(), self.now)
            for action in actions:
                if isinstance(action, SendBeat):
                    self._send(n, action)
                elif isinstance(action, Decided):
                    self.said.append((self.now, n, action))
                else:
                    events.extend(_obeyed(action))

    def _send(self, sender: int, action: SendBeat) -> None:
        for beat in action.beats:
            for to in action.to or self.nodes:
                if to != sender and to in self.nodes and self._passes(sender, to, beat.link):
                    self._sent += 1
                    item = (self.now + DELAY_US, self._sent, to, beat.link, beat)
                    heapq.heappush(self._wire, item)

    def _passes(self, a: int, b: int, link: int) -> bool:
        """A link that is down between this node and one of the two is down for them."""
        me, peers = self._seen.spec.me, self._seen.peers
        return link not in self._cut and all(n == me or peers[n].links[link].up for n in (a, b))


def _stand(node: Node, k: int, identity: Identity, held: bool, now_us: int) -> None:
    """Service `k` as it is: `identity` owns it, or (not `held`) was the last to."""
    service, timing = node.services[k], node.spec.timing
    service.promise = identity
    service.promised_us = service.silence_us = now_us if held else now_us - timing.dead_us
    service.highest = service.owned_epoch = identity.epoch
    service.owner_seen = True
    if not held or identity.node != node.spec.me:
        return
    service.state = State.OWNED
    service.identity = identity
    service.lease_until_us = now_us + timing.lease_us
    service.fence_until_us = now_us + timing.fence_us
    service.voter_sent_us = [now_us if n != node.spec.me else NEVER
                             for n in range(len(node.spec.nodes))]  # fmt: skip
    service.fence_closed = False
    service.addresses = service.holding = True


def _reason(seen: Node, n: int, k: int) -> str:
    return seen.services[k].reason if n == seen.spec.me else "its agent says that it is not ready"


def _obeyed(action: Action) -> Iterator[Input]:
    match action:
        case CloseFence():
            yield FenceClosed(action.service, True)
        case AddAddresses():
            yield AddressesAdded(action.service, True)
        case RemoveAddresses():
            yield AddressesRemoved(action.service, True)
        case KillFreeswitch():
            yield FreeswitchExited("is killed")


# -- the answer ----------------------------------------------------------------------------------


def _fate(node: Node, k: int, seen: Identity, runs: Sequence[tuple[_Model, int]]) -> Fate:
    """The first phase's end, with the spread of the others."""
    ids = [spec.id for spec in node.spec.nodes]
    was = seen.node
    first = runs[0][0].owners(k)
    owner = first[0] if first else NOBODY_NODE
    others = {n for model, _ in runs for n in (model.owners(k) or [NOBODY_NODE])} - {owner}
    times = [t for model, since_us in runs if (t := _served_ms(model, k, since_us)) is not None]
    outcome = "kept" if owner == was else "moved"
    if owner == was and times:
        outcome = "interrupted"
    if not first:
        outcome = "unserved"
    elif len(first) > 1:
        outcome = "overlapping"
    return Fate(
        service=node.spec.services[k].name,
        was=ids[was] if was >= 0 else None,
        owner=ids[owner] if owner >= 0 else None,
        outcome=outcome,
        after_ms=(min(times), max(times)) if times else None,
        reason=_reason_of(runs[0][0], k, owner),
        also=tuple(ids[n] if n >= 0 else "nobody" for n in sorted(others)),
    )


def _reason_of(model: _Model, k: int, owner: int) -> str:
    if owner == NOBODY_NODE:
        return why_unserved(model.nodes, k, model.now)
    return why_without_freeswitch(model.nodes, k, owner, model.now)


def _served_ms(model: _Model, k: int, since_us: int) -> float | None:
    """When the addresses were up at the last who took the service."""
    found = [t for t, _, what in model.said if what.row == "T301" and what.service == k]
    return (found[-1] - since_us) / 1000 if found else None

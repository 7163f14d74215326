"""Mutations of the rules about the set of voters (core.reconfigure): see `drills`."""

from __future__ import annotations

from typing import Any

from haclusterd.core import adoption, claimant, marks, reconfigure, voter
from haclusterd.core import node as core
from haclusterd.core.actions import Action
from haclusterd.core.inputs import StageRequested
from haclusterd.core.model import ClusterSpec
from haclusterd.core.state import NEVER, Node
from tests.sim.member import Member
from tests.sim.mutations import patch
from tests.sim.network import Network


def no_floor() -> None:
    """A voter serves nodes of every older set alike."""

    def set_floor(node: Node) -> None:
        node.roll.floor = -1

    for module in (reconfigure, adoption):
        patch(module, "set_floor", set_floor)


def many_at_once() -> None:
    """The next set may differ from the present one by any number of nodes."""
    before = reconfigure._node_objections

    def objections(present: ClusterSpec, wanted: ClusterSpec) -> list[str]:
        return [text for text in before(present, wanted) if not text.startswith("more than one")]

    reconfigure._node_objections = objections


def said_before_written() -> None:
    """A staged set is said aloud at once, and written to the disk some time later."""

    def reload(self: Any, t: int, spec: ClusterSpec) -> None:
        self.file = spec
        if not self.alive or self.node is None or self.thaw_at > t:
            return
        event = StageRequested(-1, spec)
        if reconfigure.refusals(self.node, event):
            return
        self.kin[spec.config_hash] = spec
        self.world.network.know(self, spec)
        self.give(t, event)

        def write(at: int, life: int) -> None:
            if life == self.life and self.alive and self.disk.active.revision < spec.revision:
                self.disk.staged = spec

        self.world.at(t + self.rng.randrange(2_000_000), write, self.life)

    Member.reload = reload  # type: ignore[method-assign]


def taken_up_at_once() -> None:
    """A decided set is taken up without waiting until older leases have run out."""

    def wait_us(node: Node) -> int:
        return 0

    reconfigure.wait_us = wait_us


def taken_up_in_the_hold_down() -> None:
    """Who has just come back takes no set up before it can have heard who owns what."""
    true = reconfigure.judge

    def judge(node: Node, now_us: int, out: list[Action]) -> None:
        start_us, listens_us = node.start_us, node.roll.listens_us
        node.start_us = node.roll.listens_us = NEVER
        true(node, now_us, out)
        node.start_us, node.roll.listens_us = start_us, listens_us

    reconfigure.judge = judge


def left_behind_may_win() -> None:
    """Nobody is granted who is not about to take up the set that is known to be in force."""
    voter._is_left_behind = lambda node, claimant: False


def blind_and_counting() -> None:
    """Who cannot read the set before counts by no marks until all others count by its set."""

    def settle_in(node: Node, now_us: int) -> None:
        node.roll.blind = False

    reconfigure.settle_in = settle_in


def removed_and_claiming() -> None:
    """Who has agreed to be removed claims nothing once that set is in force."""
    true = reconfigure.may_claim

    def may_claim(node: Node) -> bool:
        stays, node.roll.stays = node.roll.stays, True
        answer = true(node)
        node.roll.stays = stays
        return answer

    patch(claimant, "may_claim", may_claim)


def former_nodes_unanswered() -> None:
    """Who was removed is sent a beat, in which it can read the revision."""
    patch(Network, "_answer_former", lambda *args: None)


def returned_votes_at_once() -> None:
    """Who starts, and hears of a later set in force, does not vote before it has taken it up."""
    true = reconfigure.begin

    def begin(node: Node, *, proven: bool, kin: tuple[int, ...], hold_down_us: int = 0) -> None:
        true(node, proven=proven, kin=kin, hold_down_us=hold_down_us)
        node.roll.returned = False

    reconfigure.begin = begin


def taken_up_and_deaf() -> None:
    """Who has taken up the set that it found in force listens before it votes."""
    true = reconfigure.judge

    def judge(node: Node, now_us: int, out: list[Action]) -> None:
        node.roll.listens_us = NEVER
        true(node, now_us, out)

    reconfigure.judge = judge


def decided_by_one() -> None:
    """A staged set is taken up without a majority."""

    def is_decided(node: Node) -> bool:
        return node.roll.voted

    reconfigure.is_decided = is_decided


def file_is_enough() -> None:
    """A node without its disk counts by the set in its file, whichever that is."""
    before = reconfigure.begin

    def begin(node: Node, *, proven: bool, kin: tuple[int, ...], hold_down_us: int = 0) -> None:
        before(node, proven=True, kin=kin, hold_down_us=hold_down_us)

    reconfigure.begin = begin


def agrees_twice() -> None:
    """A file that lies on the host displaces the set that this node has agreed to."""
    true = reconfigure.stage

    def stage(node: Node, event: StageRequested, now_us: int, out: list[Action]) -> None:
        node.roll.voted = node.roll.voted and event.voted
        true(node, event, now_us, out)

    core._TAKE[StageRequested] = stage


def marks_beside_a_change() -> None:
    """While a change of the voters can be finished, nobody is marked dead."""

    def change_under_way(node: Node) -> str:
        return ""

    marks._change_under_way = change_under_way

"""Tallies: a peer of which nothing can be read is an alarm, whatever else does not open is not."""

from __future__ import annotations

import pytest

from haclusterd.core.model import ClusterSpec
from haclusterd.heart.links import Links
from haclusterd.heart.tallies import FORGET_US, SAY_EVERY_US, UNREADABLE_US, Tallies
from haclusterd.wire import ClusterKey, KeyRing, Outcome, Wire
from tests.unit.test_wire import ALICE, BOB, CAROL, KEY_1, address, beat, spec

SECOND = 1_000_000
OTHER_KEY = KeyRing((ClusterKey(1, bytes(32)),))


class Here:
    """Bob's heart, a second at a time."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self.wire = Wire(cluster, KeyRing((KEY_1,)), 99)
        self.said: list[str] = []
        self.now_us = 500 * SECOND
        links = Links(0, [node.links for node in cluster.nodes], cluster.me)
        self.tallies = Tallies(cluster, self.wire, links, self._say, self.now_us)
        self._seq = 0

    def _say(self, text: str, level: int) -> None:
        self.said.append(text)

    def second(self, *datagrams: tuple[bytes, str]) -> list[str]:
        """These come on link 0, a second passes; the alarms that stand then."""
        for data, source in datagrams:
            self.wire.open(data, 0, source)
        self.now_us += SECOND
        self.tallies.look(self.now_us)
        return [alarm.text for alarm in self.tallies.alarms()]

    def sealed(self, ring: KeyRing | None = None, sender: int = ALICE) -> tuple[bytes, str]:
        self._seq += 1
        one = beat(self._seq, sender=sender)
        wire = Wire(spec(sender), ring or KeyRing((KEY_1,)), one.incarnation)
        return wire.seal(one), address(sender)


@pytest.fixture
def here() -> Here:
    return Here(spec(BOB))


def test_a_wrong_key_is_named_and_clears(here: Here) -> None:
    for _ in range(UNREADABLE_US // SECOND - 1):
        assert here.second(here.sealed(OTHER_KEY)) == []
    (alarm,) = here.second(here.sealed(OTHER_KEY))
    assert "fs-0 on link 1 (10.1.0.1)" in alarm
    assert "sha256sum" in alarm
    assert here.tallies.of_peers()[0].unreadable_now == "bad mac"
    assert here.said == [alarm]
    assert here.second(here.sealed(OTHER_KEY), here.sealed()) == []
    assert here.said[1:] == ["beats of fs-0 on link 1 (10.1.0.1) can be read again"]


def test_forged_datagrams_beside_readable_beats_only_count(here: Here) -> None:
    for _ in range(10):
        good, source = here.sealed()
        forged = (good[:-1] + bytes([good[-1] ^ 1]), source)
        assert here.second(forged, (b"garbage", source), (good, source), (good, source)) == []
    received = here.tallies.of_links()[0].received
    assert (received["ok"], received["bad_mac"], received["replay"]) == (10, 10, 10)
    assert received["malformed"] == 10
    assert here.said == []


def test_replays_of_a_dead_node_and_strangers_are_no_alarm(here: Here) -> None:
    old = here.sealed()
    here.second(old)
    for _ in range(10):
        assert here.second(old, (b"x" * 99, "192.0.2.9")) == []


def test_a_peer_that_falls_silent_is_merely_silent(here: Here) -> None:
    for _ in range(5):
        alarms = here.second(here.sealed(OTHER_KEY))
    assert alarms
    for _ in range(FORGET_US // SECOND + 1):
        alarms = here.second()
    assert alarms == []
    assert len(here.said) == 1


def test_all_peers_unreadable_means_this_node(here: Here) -> None:
    for _ in range(4):
        alarms = here.second(here.sealed(OTHER_KEY), here.sealed(OTHER_KEY, CAROL))
    assert len(alarms) == 2
    assert all("this node's own key file" in alarm for alarm in alarms)


def test_a_later_revision_is_no_riddle_to_a_node_that_was_left_behind(here: Here) -> None:
    """The alarm `revision` says what to do; a wrong key beside it is still told."""
    for outcome, alarms in ((Outcome.OTHER_CONFIG, 0), (Outcome.BAD_MAC, 1)):
        for _ in range(4):
            here.wire.heard[0][ALICE].unreadable += 1
            here.wire.heard[0][ALICE].outcome = outcome
            here.second()
        assert len(here.tallies.alarms(behind=True)) == alarms
        assert len(here.tallies.alarms()) == 1


def test_a_flapping_peer_does_not_fill_the_journal(here: Here) -> None:
    for _ in range(20):
        here.second(here.sealed())
        for _ in range(4):
            here.second(here.sealed(OTHER_KEY))
    assert 100 * SECOND > SAY_EVERY_US
    assert len([text for text in here.said if "none can be read" in text]) == 2


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.OK, Outcome.REPLAY)])
def test_every_outcome_has_its_cause(here: Here, outcome: Outcome) -> None:
    heard = here.wire.heard[0][ALICE]
    for _ in range(4):
        heard.unreadable += 1
        heard.outcome = outcome
        alarms = here.second()
    assert outcome.value in alarms[0]

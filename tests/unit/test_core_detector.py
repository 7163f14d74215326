"""Hearing: links are up only two-way, old words are no news, a new life has to be proved."""

from __future__ import annotations

import msgspec

from haclusterd.core import inputs as inp
from haclusterd.core.actions import PeerCurrent, SendBeat
from haclusterd.core.model import Echo
from haclusterd.core.state import SENT_TIMES_KEPT
from tests.unit.core_bench import Bench, kinds


def bench() -> Bench:
    found = Bench().after_hold_down()
    found.forget()
    return found


def test_links_are_up_only_two_way_after_five_good_beats() -> None:
    b = bench()
    for _ in range(20):
        b.hear(1, two_way=False)
        b.pass_ms(25)
    assert "M1" not in b.rows
    for count in range(5):
        assert not b.node.peers[1].links[0].up, count
        b.hear(1)
        b.pass_ms(25)
    assert b.node.peers[1].links[0].up
    assert not b.node.peers[1].links[1].up
    b.pass_ms(200)
    assert {"M2", "M4"} <= set(b.rows)


def test_links_one_way_peer_is_not_alive() -> None:
    b = bench()
    b.hear(1, two_way=False)
    assert not b.hears(1)


def test_two_way_echo_older_than_three_beats_proves_nothing() -> None:
    b = bench()
    b.ensure_recent_send()
    late = b.beat(1)
    b.pass_ms(76)
    b.give(inp.Received(0, late))
    assert not b.hears(1)


def test_two_way_echo_of_another_incarnation_proves_nothing() -> None:
    b = bench()
    echo = Echo(12345, b.node.seq, 0)
    b.hear(1, echoes=(echo, None, None))
    assert not b.hears(1)


def test_stranger_is_answered_at_once_and_believed_when_two_way() -> None:
    """A thawed or started peer is known after one round trip; a replayed one never."""
    b = bench()
    b.hear(1)
    b.pass_ms(100)
    b.incarnations[1] = 555
    (answer,) = kinds(b.hear(1, two_way=False), SendBeat)
    assert answer.beats[0].echoes[1] == Echo(555, b.seqs[1], 0)
    assert b.node.peers[1].incarnation != 555
    found = b.hear(1)
    assert b.node.peers[1].incarnation == 555
    assert PeerCurrent(1, 555) in found


def test_stranger_is_not_even_echoed_while_the_current_life_is_fresh() -> None:
    """RELIABILITY 23: replayed beats of a dead incarnation do not push the living one out."""
    b = bench()
    b.hear(1)
    b.pass_ms(5)
    b.incarnations[1] = 555
    assert kinds(b.hear(1, two_way=False), SendBeat) == []
    assert b.node.peers[1].links[0].incarnation == 101


def test_old_and_doubled_beats_are_no_news() -> None:
    """RELIABILITY 20, 21."""
    b = bench()
    b.ensure_recent_send()
    first, second = b.beat(1, health=50), b.beat(1, health=60)
    for beat in (second, first, second):
        b.give(inp.Received(0, beat))
    assert b.node.peers[1].health == 60


def test_dead_after_dead_ms_of_silence_and_said_once() -> None:
    b = bench()
    b.hear(1)
    b.pass_ms(149)
    assert b.hears(1)
    b.pass_ms(30)
    assert not b.hears(1)
    b.pass_ms(1_000)
    assert b.rows.count("M4") == 1


def test_loss_and_round_trip_are_measured() -> None:
    b = bench()
    b.hear(1)
    for _ in range(50):
        b.seqs[1] += 1  # every other beat is lost
        b.ensure_recent_send()
        b.pass_ms(1)
        b.hear(1)
        b.pass_ms(25)
    line = b.node.peers[1].links[0]
    assert 300 <= line.loss_permille <= 500
    assert 0 < line.rtt_us <= 25_000


def test_freeze_calls_nobody_dead() -> None:
    b = bench()
    b.hear(1)
    b.pass_ms(500, tick=False)
    b.forget()
    b.give(inp.Froze(500_000, 9))
    b.pass_ms(30)
    assert b.rows == ["M15"]
    assert "500 ms" in b.said[0].text


def test_bounded_memory_of_sends() -> None:
    """S13."""
    b = bench()
    for _ in range(3 * SENT_TIMES_KEPT):
        b.pass_ms(2)
        b.hear(1, b.beat(1).services[0])
        b.node.next_beat_us = b.now_us
        b.give(inp.Tick())
    assert len(b.node.sent_us) <= SENT_TIMES_KEPT


def test_own_beat_and_beats_of_other_sizes_are_ignored() -> None:
    """S11."""
    b = bench()
    b.ensure_recent_send()
    good = b.beat(1)
    b.give(inp.Tick())
    before = msgspec.msgpack.encode(b.node)
    for odd in (
        msgspec.structs.replace(good, sender=0),
        msgspec.structs.replace(good, services=()),
        msgspec.structs.replace(good, echoes=good.echoes[:1]),
    ):
        assert b.give(inp.Received(0, odd)) == []
    assert msgspec.msgpack.encode(b.node) == before

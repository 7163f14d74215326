"""What a node says and when: beats in step with the first node, answers of a round gathered."""

from __future__ import annotations

import itertools

from haclusterd.core.actions import SendBeat
from haclusterd.core.model import Identity, ServiceEntry, State
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of

OWNS_S0 = entry(Identity(3, 1, 77), State.OWNED)
OWNS_S1 = entry(Identity(3, 2, 78), State.OWNED)


def settled(me: int) -> Bench:
    """A node that hears two owners, nodes 1 and 2, and has just sent a regular beat."""
    bench = Bench(spec_of(4, 2, me=me)).after_hold_down()
    bench.report(ready=False)
    for _ in range(4):
        for owner in {1, 2} - {me}:
            bench.hear(owner, *words_of(owner))
        bench.pass_ms(25)
    bench.node.next_beat_us = bench.now_us
    bench.pass_ms(0)
    bench.forget()
    return bench


def words_of(owner: int) -> tuple[ServiceEntry, ...]:
    return (OWNS_S0,) if owner == 1 else (STANDBY, OWNS_S1)


def regular(bench: Bench) -> list[SendBeat]:
    return [a for a in kinds(bench.asked, SendBeat) if not a.beats[0].reply]


def test_answers_to_all_owners_of_a_round_are_one() -> None:
    bench = settled(0)
    bench.pass_ms(5)
    bench.hear(1, OWNS_S0)
    bench.pass_ms(0.3)
    bench.hear(2, STANDBY, OWNS_S1)
    bench.pass_ms(0.8)
    (answer,) = kinds(bench.asked, SendBeat)
    assert answer.to == (1, 2)
    assert [e.lease_seq for e in answer.beats[0].services] == [bench.seqs[1], bench.seqs[2]]


def test_answers_go_out_on_the_link_where_the_owner_was_heard() -> None:
    bench = settled(0)
    bench.pass_ms(5)
    bench.hear(1, OWNS_S0)
    other = bench.beat(2, STANDBY, OWNS_S1, link=1)
    bench.hear_on(1, other)
    bench.pass_ms(1)
    found = [(a.to, a.beats[0].link) for a in kinds(bench.asked, SendBeat)]
    assert found == [((1,), 0), ((2,), 1)]
    assert len({a.beats[0].seq for a in kinds(bench.asked, SendBeat)}) == 1


def test_answer_is_left_out_where_a_regular_beat_says_it() -> None:
    bench = settled(0)
    bench.node.next_beat_us = bench.now_us + 500
    bench.hear(1, OWNS_S0)
    bench.pass_ms(3)
    (beat,) = kinds(bench.asked, SendBeat)
    assert not beat.beats[0].reply
    assert beat.beats[0].services[0].lease_seq == bench.seqs[1]


def test_step_a_node_beats_with_the_first_living_one() -> None:
    bench = settled(3)
    bench.pass_ms(19)
    assert regular(bench) == []
    bench.hear(1, OWNS_S0)
    assert len(regular(bench)) == 1


def test_step_the_second_node_sets_no_pace_while_the_first_lives() -> None:
    bench = settled(3)
    bench.pass_ms(19)
    bench.hear(2, STANDBY, OWNS_S1)
    assert regular(bench) == []
    bench.node.peers[1].alive = False
    bench.hear(2, STANDBY, OWNS_S1)
    assert len(regular(bench)) == 1


def test_step_the_first_node_keeps_its_own_pace() -> None:
    bench = settled(1)
    bench.pass_ms(20)
    bench.hear(2, STANDBY, OWNS_S1)
    assert regular(bench) == []


def test_step_a_peer_that_beats_too_often_does_not_set_the_pace() -> None:
    """Whatever the first node sends: at most one beat per 3/5 of an interval (S13)."""
    bench = settled(3)
    for _ in range(250):
        bench.hear(1, OWNS_S0)
        bench.pass_ms(1)
    assert len(regular(bench)) <= 250 / 15 + 1


def test_step_answers_and_one_way_beats_set_no_pace() -> None:
    bench = settled(3)
    bench.pass_ms(20)
    bench.hear(1, OWNS_S0, reply=True)
    bench.hear(1, OWNS_S0, two_way=False)
    assert regular(bench) == []


def test_step_does_not_keep_a_node_from_looking_at_the_time() -> None:
    """Its own deadlines never come while it beats with the first node; a dead peer still shows."""
    bench = Bench(spec_of(5, me=4)).after_hold_down()
    bench.report(ready=False)
    heard = {0: entry(Identity(3, 0, 76), State.OWNED), 1: STANDBY, 2: STANDBY, 3: STANDBY}
    for _ in range(20):
        for peer, word in heard.items():
            bench.hear(peer, word)
        bench.pass_ms(17)
    bench.hear(3, heard.pop(3))
    for _ in range(10):
        for peer, word in heard.items():
            bench.hear(peer, word)
        bench.pass_ms(17)
    assert not bench.hears(3)  # it owns nothing, and was silent for 170 ms


def test_step_without_the_first_node_the_others_go_on_within_a_tenth() -> None:
    bench = settled(3)
    bench.pass_ms(400)
    sent = [a.beats[0].seq for a in regular(bench)]
    times = [bench.node.sent_us[seq] for seq in sent]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps
    assert all(22_500 <= gap <= 27_500 for gap in gaps), gaps

"""Orders in the core: pause, maintenance for a time, nodes marked dead, relinquishing (B19)."""

from __future__ import annotations

import msgspec
import pytest

from haclusterd.core import inputs as inp
from haclusterd.core.actions import Answered, KillFreeswitch, Relinquish
from haclusterd.core.marks import EPOCHS_SKIPPED
from haclusterd.core.model import FOR_GOOD_US, Flag, Identity, LastResort, Release, State
from haclusterd.core.orders import span
from haclusterd.core.ranking import Facts
from haclusterd.core.relinquish import Sacrifice, spare
from haclusterd.core.state import is_paused
from haclusterd.core.view import view
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of
from tests.unit.test_core_voter import CLAIM, OWNER, claims, supporting

PAUSE = inp.PauseOrdered(1, 256, FOR_GOOD_US, "anna")


def answer(bench: Bench, request: inp.Input) -> Answered:
    (found,) = kinds(bench.give(request), Answered)
    return found


def alarms(bench: Bench) -> set[str]:
    return {alarm.name for alarm in view(bench.node, bench.now_us).alarms}


# pause ------------------------------------------------------------------------------------------


def standby_bench() -> Bench:
    """Ready to take over from node 1, which owns the service; node 2 votes."""
    bench = Bench().after_hold_down()
    bench.keep_hearing(200, (1, entry(OWNER, State.OWNED)), (2, STANDBY))
    bench.forget()
    return bench


def test_pause_no_claim_for_silence_and_all_at_its_end() -> None:
    bench = standby_bench()
    assert answer(bench, msgspec.structs.replace(PAUSE, left_us=2_000_000)).ok
    bench.keep_hearing(1_500, (2, entry(OWNER)))
    assert not bench.hears(1)
    assert "T101" not in bench.rows
    assert {"paused", "unserved", "pause_unknown"} <= alarms(bench)
    bench.keep_hearing(600, (2, entry(OWNER)))
    assert "M19" in bench.rows
    assert "T101" in bench.rows
    assert "paused" not in alarms(bench)


def test_pause_what_is_released_is_claimed() -> None:
    bench = standby_bench()
    bench.give(PAUSE)
    bench.hear(1, STANDBY, releases=(Release(0, OWNER, 0),))
    bench.keep_hearing(100, (1, STANDBY), (2, STANDBY))
    assert "T101" in bench.rows


def test_pause_withholds_the_vote_from_who_does_not_know() -> None:
    bench = supporting()
    bench.give(PAUSE)
    bench.pass_ms(500)
    assert not claims(bench)
    assert claims(bench, Identity(5, OWNER.node, 4))  # its owner's own is another matter


def test_pause_a_released_service_is_granted() -> None:
    bench = supporting()
    bench.give(PAUSE)
    bench.hear(1, STANDBY, releases=(Release(0, OWNER, 2),))
    assert claims(bench, CLAIM)


def back_from_a_restart(owned: int) -> Bench:
    """It stood by itself at epoch 4 when it stopped; the newest term it knows of was `owned`."""
    bench = Bench(ready=False)
    bench.give(inp.Restored((Identity(4, 0, 9),), (owned,)))
    bench.give(PAUSE)
    bench.after_hold_down()
    bench.keep_hearing(100, (1, STANDBY))
    return bench


def test_ml10_a_former_owner_keeps_its_vote_in_a_pause() -> None:
    """Nobody else may hear of the pause: one vote of two would move what is being worked on."""
    bench = back_from_a_restart(owned=4)
    assert bench.stands_in(State.STANDBY)
    assert not claims(bench, Identity(5, 2, 88))
    bench.give(msgspec.structs.replace(PAUSE, version=512, left_us=0))
    assert claims(bench, Identity(5, 2, 88))


def test_ml10_what_another_owned_since_is_not_kept_in_a_pause() -> None:
    assert claims(back_from_a_restart(owned=5), Identity(6, 1, 8))


def test_f16_an_epoch_that_another_won_is_no_term_of_ones_own_in_a_pause() -> None:
    """Its own claim of that epoch came to nothing: the winner, fenced since, needs its vote."""
    bench = standby_bench()
    bench.keep_hearing(300, (2, entry(OWNER)))
    void = bench.service.promise
    assert void.node == bench.node.spec.me
    bench.hear(1, entry(Identity(void.epoch, 1, 7), State.OWNED, held=void.epoch))
    bench.give(PAUSE)
    bench.keep_hearing(150, (2, entry(OWNER)))
    assert bench.stands_in(State.STANDBY)
    assert bench.service.promise == void
    assert claims(bench, Identity(void.epoch + 1, 1, 8))


def test_pause_an_own_claim_that_came_to_nothing_is_no_term() -> None:
    bench = standby_bench()
    bench.keep_hearing(300, (2, entry(OWNER)))
    assert "T101" in bench.rows  # nobody grants it
    bench.give(PAUSE)
    bench.forget()
    bench.keep_hearing(2_000, (2, entry(OWNER)))
    assert "T101" not in bench.rows


def test_pause_a_dead_freeswitch_stays_and_a_hung_one_lives() -> None:
    bench = Bench()
    bench.own()
    bench.give(PAUSE)
    assert kinds(bench.give(inp.FreeswitchHung(77)), KillFreeswitch) == []
    bench.give(inp.FreeswitchExited())
    bench.keep_owning(100)
    assert bench.stands_in(State.OWNED)
    assert answer(bench, inp.SwitchoverRequested(2, 0, -1)).ok
    assert bench.stands_in(State.STANDBY)


def test_pause_repeated_older_and_shorter_words() -> None:
    bench = Bench().after_hold_down()
    assert answer(bench, PAUSE).text == "done"
    bench.give(msgspec.structs.replace(PAUSE, request=-1))
    assert bench.rows.count("M17") == 1
    assert answer(bench, msgspec.structs.replace(PAUSE, version=3, left_us=0)).ok
    assert is_paused(bench.node, bench.now_us)
    bench.give(msgspec.structs.replace(PAUSE, request=-1, left_us=0))  # over elsewhere
    bench.pass_ms(30)
    assert not is_paused(bench.node, bench.now_us)
    assert answer(bench, msgspec.structs.replace(PAUSE, version=999, left_us=0)).ok
    assert bench.rows.count("M19") == 1


def test_pause_is_told_in_the_beats_and_survives_an_upgrade() -> None:
    bench = Bench().after_hold_down()
    bench.give(PAUSE)
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(bench.node), type=type(bench.node))
    assert is_paused(packed, bench.now_us)
    word = view(bench.node, bench.now_us)
    assert word.pause is not None
    assert word.nodes[0].flags & Flag.PAUSED


def test_maintenance_for_a_time_ends_by_itself() -> None:
    bench = Bench().after_hold_down()
    found = answer(bench, inp.MaintenanceRequested(3, True, 90_000_000))
    assert found.text == "in maintenance: no candidate, 90s from now a candidate again"
    bench.give(inp.MaintenanceRequested(-1, True, 90_000_000))  # the agent restarted
    bench.pass_ms(89_000)
    assert "maintenance" in alarms(bench)
    bench.pass_ms(2_000)
    assert "maintenance" not in alarms(bench)
    assert bench.rows.count("M11") == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1s"), (90, "90s"), (60, "1m"), (150, "2m30s"), (3600, "1h"), (5400, "90m"),
     (9000, "2h30m"), (86_400, "24h")],
)  # fmt: skip
def test_spans_are_written_for_people(seconds: int, text: str) -> None:
    assert span(seconds * 1_000_000) == text


# marked dead ------------------------------------------------------------------------------------


def marks(*nodes: int, request: int = -1, version: int = 256) -> inp.MarksOrdered:
    return inp.MarksOrdered(request, tuple(inp.Marked(n, version, "anna") for n in nodes))


def test_ml18_a_node_that_is_heard_cannot_be_marked() -> None:
    bench = standby_bench()
    found = answer(bench, marks(1, request=4))
    assert not found.ok
    assert found.text == "n1 is heard by n0: it is not dead; stop it first"
    bench.keep_hearing(200, (2, STANDBY))
    bench.hear(1, STANDBY, two_way=False)  # one way is heard, too
    bench.pass_ms(10)
    assert not answer(bench, marks(1, request=5)).ok
    assert not answer(bench, marks(0, request=6)).ok
    assert bench.node.marks == []


def test_ml18_without_a_majority_the_mark_is_the_way_out() -> None:
    bench = standby_bench()
    bench.pass_ms(1_000)
    assert not bench.node.majority
    assert answer(bench, marks(1, 2, request=4)).ok
    bench.pass_ms(200)
    assert not bench.stands_in(State.OWNED)  # not before dead + lease
    bench.pass_ms(400)
    assert bench.stands_in(State.OWNED)
    assert bench.service.identity.epoch > OWNER.epoch + 2 * EPOCHS_SKIPPED
    assert "marked_dead" in alarms(bench)
    word = view(bench.node, bench.now_us)
    assert (word.voters, word.reachable) == (1, 1)


def test_ml18_a_marked_node_gets_neither_echo_nor_grant() -> None:
    bench = supporting()
    bench.pass_ms(400)
    bench.give(marks(1, 2))
    bench.hear(1, entry(OWNER, State.OWNED))
    assert bench.node.peers[1].alive
    seq = bench.service.lease_seq
    bench.hear(1, entry(OWNER, State.OWNED))
    assert bench.service.lease_seq == seq
    assert not claims(bench)


def test_ml18_half_of_four_is_no_majority_until_one_is_marked() -> None:
    bench = Bench(spec_of(nodes=4)).after_hold_down()
    bench.keep_hearing(100, (1, entry(OWNER, State.OWNED)), (2, STANDBY), (3, STANDBY))
    bench.keep_hearing(500, (2, entry(OWNER)))
    assert not bench.node.majority
    bench.give(marks(1))
    bench.keep_hearing(300, (2, entry(OWNER)))
    assert bench.node.majority  # two of three


def test_ml18_who_is_marked_gives_everything_up_and_claims_nothing() -> None:
    bench = Bench()
    bench.own()
    bench.give(marks(0))
    assert bench.stands_in(State.STANDBY)
    assert bench.rows[-2:] == ["T405", "T701"]
    bench.forget()
    bench.keep_hearing(1_000, (1, STANDBY))
    assert "T101" not in bench.rows
    assert view(bench.node, bench.now_us).nodes[0].role == "failed"


def test_ml18_a_marked_node_is_cleared_when_its_vote_is_there() -> None:
    bench = standby_bench()
    bench.pass_ms(1_000)
    bench.give(marks(1, 2))
    bench.pass_ms(600)
    assert bench.stands_in(State.OWNED)
    mine = bench.service.identity
    bench.forget()
    bench.keep_hearing(90, (1, entry(OWNER)))  # alive, and of the old opinion
    assert bench.node.marked == {1, 2}
    bench.hear(1, entry(mine, lease_seq=bench.node.seq))
    bench.pass_ms(30)
    assert bench.node.marked == {2}
    assert "M23" in bench.rows
    assert bench.stands_in(State.OWNED)
    bench.keep_owning(300)
    assert bench.stands_in(State.OWNED)
    bench.pass_ms(150)
    assert bench.stands_in(State.LAPSED)  # two voters again, and both are needed


def test_ml18_a_marked_node_that_knows_another_owner_is_not_cleared() -> None:
    new = Identity(9, 2, 7)
    bench = standby_bench()
    bench.keep_hearing(400, (2, entry(new, State.OWNED)))
    bench.give(marks(1))
    owning = (2, entry(new, State.OWNED))
    bench.keep_hearing(400, (1, entry(OWNER, State.LAPSED)), owning)
    bench.keep_hearing(100, (1, entry(OWNER)), owning)
    assert "marked_dead" in alarms(bench)
    bench.keep_hearing(100, (1, entry(new)), owning)
    assert "marked_dead" not in alarms(bench)
    assert [m.cleared for m in view(bench.node, bench.now_us).marks] == [True]


def test_ml18_repeated_words_bump_no_epoch_and_a_mark_can_be_taken_back() -> None:
    bench = standby_bench()
    bench.pass_ms(1_000)
    bench.give(marks(1))
    highest = bench.service.highest
    bench.give(marks(1))
    assert bench.service.highest == highest
    bench.give(marks())
    assert bench.node.marked == frozenset()
    assert bench.rows.count("M21") == 1
    assert bench.rows[-1] == "M23"


# B19 --------------------------------------------------------------------------------------------


def facts(services: list[State], calls: int = 10, flags: int = 0, ready: bool = True) -> Facts:
    return Facts(True, flags, 100, 0, calls, tuple(entry(OWNER, s, ready=ready) for s in services))


def masters(*calls: int, **changes: int) -> tuple[Facts, ...]:
    """Node k owns service k."""
    return tuple(
        facts([State.OWNED if k == n else State.STANDBY for k in range(len(calls))], count,
              changes.get(f"flags{n}", 0))
        for n, count in enumerate(calls)
    )  # fmt: skip


def test_b19_the_last_of_equal_masters_is_spare() -> None:
    spec = spec_of(nodes=2, services=2)
    assert spare(spec, masters(10, 10)) == Sacrifice(1, ((1, 0),))
    nodes = (msgspec.structs.replace(spec.nodes[0], priority=50), spec.nodes[1])
    assert spare(msgspec.structs.replace(spec, nodes=nodes), masters(10, 10)) == Sacrifice(
        0, ((0, 1),)
    )


def test_b19_nobody_is_spare_without_room_or_while_somebody_comes() -> None:
    spec = spec_of(nodes=2, services=2)
    full = tuple(
        msgspec.structs.replace(f, calls=995, services=tuple(
            msgspec.structs.replace(e, calls=995) for e in f.services))
        for f in masters(1, 1)
    )  # fmt: skip
    assert spare(spec, full) is None
    assert spare(spec, masters(10, 10, flags0=Flag.SYNCING)) is None
    assert spare(spec_of(nodes=1), masters(10)) is None
    assert spare(spec, (masters(10, 10)[0],) * 2) is None  # one is owned twice, one by nobody


def relinquishing(us: int = 1_000_000) -> Bench:
    bench = Bench(spec_of(nodes=3, services=2, relinquish_us=us, last_resort=LastResort.MASTERS))
    bench.report()
    bench.own()
    return bench


def test_b19_steps_down_once_after_its_patience() -> None:
    other = Identity(1, 1, 5)
    bench = relinquishing()
    spec = bench.spec
    nodes = tuple(msgspec.structs.replace(n, priority=100 - (i == 0)) for i, n in
                  enumerate(spec.nodes))  # fmt: skip
    bench.node.spec = msgspec.structs.replace(spec, nodes=nodes)

    def go_on(ms: int) -> list[Relinquish]:
        for _ in range(ms // 10):
            mine = entry(bench.service.identity, lease_seq=bench.node.seq)
            bench.hear(1, mine, entry(other, State.OWNED), rank_hash=bench.node.rank_hash)
            bench.pass_ms(10)
        return kinds(bench.asked, Relinquish)

    assert go_on(900) == []
    assert go_on(400) == [Relinquish(0, 1)]
    assert "M27" in bench.rows
    assert len(go_on(5_000)) == 1


def test_b19_off_unless_the_configuration_says_so() -> None:
    bench = relinquishing(0)
    bench.keep_owning(3_000)
    assert bench.node.spare_node == -1

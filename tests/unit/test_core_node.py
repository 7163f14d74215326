"""The node as a whole: inputs, answers to operators, odd words of peers, hand-over."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from haclusterd.core import inputs as inp
from haclusterd.core.actions import (
    Answered,
    Decided,
    KillFreeswitch,
    Persist,
    Recover,
    SendBeat,
)
from haclusterd.core.aliens import ALIENS_KEPT
from haclusterd.core.model import NOBODY, Flag, Identity, Release, State
from haclusterd.core.node import next_deadline_us, step, stopped
from haclusterd.core.state import Node
from haclusterd.core.view import ALIEN_ALARM_US, view
from tests.scenarios.player import Player
from tests.sim import host as sim_host
from tests.unit.core_bench import STANDBY, Bench, entry, kinds, spec_of

HUGE = 2**63


def owner_bench() -> Bench:
    bench = Bench(spec_of(services=2))
    bench.report(ready=True)
    bench.own()
    return bench


def answer(bench: Bench, request: inp.Input) -> Answered:
    (found,) = kinds(bench.give(request), Answered)
    return found


@pytest.mark.parametrize(
    ("service", "to", "text"),
    [
        (9, -1, "there is no service number 9"),
        (-1, -1, "there is no service number -1"),
        (1, -1, "n0 does not own s1"),
        (0, 0, "n0 owns s0 already"),
        (0, 7, "7 is not ready to take s0; ready: n1"),
        (0, 2, "n2 is not ready to take s0; ready: n1"),
    ],
)
def test_switchover_refused_says_why(service: int, to: int, text: str) -> None:
    """V6: every command ends in done or refused, with the reason."""
    bench = owner_bench()
    found = answer(bench, inp.SwitchoverRequested(5, service, to))
    assert (found.request, found.ok) == (5, False)
    assert text in found.text
    assert bench.stands_in(State.OWNED)


def test_switchover_refused_without_anybody_ready() -> None:
    bench = Bench()
    bench.own()
    bench.hear(1, entry(bench.service.identity, ready=False))
    assert "no node is ready" in answer(bench, inp.SwitchoverRequested(5, 0, -1)).text


def test_switchover_accepted() -> None:
    bench = owner_bench()
    found = answer(bench, inp.SwitchoverRequested(6, 0, 1))
    assert (found.ok, found.text) == (True, "s0 moves to n1")


def test_freeswitch_exit_releases_at_once() -> None:
    """EG19."""
    bench = owner_bench()
    bench.give(inp.FreeswitchExited("was killed"))
    assert bench.service.release is not None
    assert bench.service.release.to == 1
    assert not bench.service.holding


def test_freeswitch_hung_is_killed_only_where_somebody_can_have_the_calls() -> None:
    bench = owner_bench()
    assert kinds(bench.give(inp.FreeswitchHung(77)), KillFreeswitch)
    bench.pass_ms(500)
    alone = Bench(spec_of(1))
    alone.pass_ms(300)
    assert alone.stands_in(State.OWNED)
    assert not kinds(alone.give(inp.FreeswitchHung(77)), KillFreeswitch)
    assert "M7" in alone.rows


def test_agent_lost_keeps_what_is_owned() -> None:
    """DESIGN 3; M5: only the sidecar."""
    bench = Bench()
    bench.own()
    bench.give(inp.AgentChanged(False))
    bench.keep_owning(500)
    assert bench.stands_in(State.OWNED)
    assert "M9" in bench.rows
    assert "unprotected" in {alarm.name for alarm in view(bench.node, bench.now_us).alarms}


def test_recovery_failed_gives_the_service_to_the_next_and_backs_off() -> None:
    """RELIABILITY 32."""
    bench = owner_bench()
    identity = bench.service.identity
    bench.give(inp.RecoveryEnded(0, Identity(99, 0, 1), False, "old news"))
    assert bench.stands_in(State.OWNED)
    bench.give(inp.RecoveryEnded(0, identity, True))
    assert bench.stands_in(State.OWNED)
    bench.give(inp.RecoveryEnded(0, identity, False, "no profile"))
    assert bench.service.release is not None
    assert not bench.service.holding
    assert bench.service.backoff_until_us > bench.now_us
    bench.pass_ms(10_100)
    assert bench.service.backoff_until_us < 0


def test_recovery_that_failed_while_fenced_is_not_forgotten() -> None:
    """The right is another one by now, the calls and what is wrong with them are the same."""
    bench = owner_bench()
    identity = bench.service.identity
    bench.pass_ms(110)
    assert bench.stands_in(State.LAPSED)
    bench.give(inp.RecoveryEnded(0, identity, False, "no profile"))
    assert bench.stands_in(State.LAPSED)
    bench.hear(1, entry(identity))
    bench.hear(2, entry(identity))
    bench.pass_ms(60)
    claim = bench.service.promise
    assert bench.stands_in(State.RECLAIMING)
    bench.hear(1, entry(claim))
    bench.pass_ms(30)
    assert bench.service.release is not None
    assert "it cannot recover the calls: no profile" in bench.service.given_up


def test_a_new_agent_recovers_what_the_last_one_could_not_while_nobody_else_can() -> None:
    bench = Bench()
    bench.own()
    identity = bench.service.identity
    bench.hear(1, entry(identity, ready=False))
    bench.hear(2, entry(identity, ready=False))
    bench.give(inp.RecoveryEnded(0, identity, False, "esl.password is not readable"))
    assert bench.stands_in(State.OWNED)
    assert not kinds(bench.give(inp.AgentChanged(False)), Recover)
    (again,) = kinds(bench.give(inp.AgentChanged(True)), Recover)
    assert (again.service, again.identity) == (0, identity)
    assert not kinds(bench.give(inp.AgentChanged(True)), Recover)
    bench.give(inp.RecoveryEnded(0, identity, False, "still not"))
    bench.hear(1, entry(identity))
    bench.give(inp.Tick())
    assert "still not" in bench.service.given_up


def test_a_recovery_that_worked_at_last_is_no_reason_to_let_go() -> None:
    bench = Bench()
    bench.own()
    identity = bench.service.identity
    bench.hear(1, entry(identity, ready=False))
    bench.hear(2, entry(identity, ready=False))
    bench.give(inp.RecoveryEnded(0, identity, False, "nothing listens on 127.0.0.1:8021"))
    bench.give(inp.RecoveryEnded(0, identity, True))
    bench.hear(1, entry(identity))
    bench.give(inp.Tick())
    assert bench.stands_in(State.OWNED)


def test_a_freeswitch_that_exits_is_ranked_by_nobody_any_more() -> None:
    bench = Bench(spec_of(3, 3)).after_hold_down()
    for _ in range(4):
        bench.hear(1, *(entry(Identity(1, 1, k), State.OWNED) for k in range(3)))
        bench.hear(2)
        bench.pass_ms(25)
    assert all(0 in line for line in bench.node.successors)
    bench.give(inp.FreeswitchExited("was killed"))
    bench.give(inp.Tick())
    assert not any(0 in line for line in bench.node.successors)


def test_what_was_owned_outlives_a_restart() -> None:
    """A voter that restarted tells a former owner that returns of whom came after it."""
    bench = Bench(ready=False).after_hold_down()
    bench.hear(1, entry(Identity(5, 1, 7), State.OWNED))
    assert kinds(bench.asked, Persist)[-1].owned == (5,)
    again = Bench(ready=False)
    again.give(inp.Restored((Identity(5, 1, 7),), (5,)))
    again.pass_ms(30)
    assert kinds(again.asked, SendBeat)[-1].beats[0].services[0].held == 5


def test_an_owner_known_by_hearsay_outlives_a_restart_as_well() -> None:
    bench = Bench(ready=False).after_hold_down()
    bench.forget()
    bench.hear(2, entry(NOBODY, State.STANDBY, held=6))
    assert kinds(bench.asked, Persist)[-1].owned == (6,)


def test_stop_hands_over_or_fences_and_ends() -> None:
    bench = owner_bench()
    assert not stopped(bench.node)
    bench.give(inp.StopRequested())
    assert stopped(bench.node)
    alone = Bench(spec_of(1))
    alone.pass_ms(300)
    alone.give(inp.StopRequested())
    assert stopped(alone.node)
    assert "T405" in alone.rows


def test_aliens_are_an_alarm_said_once_and_bounded() -> None:
    """RELIABILITY 38."""
    bench = owner_bench()
    for _ in range(3):
        bench.give(inp.AlienAnswered(0, "203.0.113.1", "02:00:00:00:00:01"))
    assert bench.rows.count("M13") == 1
    for n in range(200):
        bench.give(inp.AlienAnswered(0, f"203.0.113.{n}", "02:00:00:00:00:01"))
    assert len(bench.node.aliens) == ALIENS_KEPT
    assert "alien_address" in {a.name for a in view(bench.node, bench.now_us).alarms}


def test_aliens_that_take_turns_are_said_at_most_every_ten_seconds_and_forgotten() -> None:
    """RELIABILITY 38, S13: alternating MACs do not fill the log; silence ends the alarm."""
    bench = owner_bench()
    for n in range(200):
        bench.give(inp.AlienAnswered(0, "203.0.113.1", f"02:00:00:00:00:0{n % 2}"))
        bench.pass_ms(100, tick=False)
    assert bench.rows.count("M13") == 2
    assert "alien_address" not in {a.name for a in view(bench.node, bench.now_us).alarms}, (
        "its lease ran out meanwhile: whoever answers may be the owner"
    )
    bench.node.services[0].state = State.OWNED
    assert "alien_address" in {a.name for a in view(bench.node, bench.now_us).alarms}
    later_us = bench.now_us + ALIEN_ALARM_US
    assert "alien_address" not in {a.name for a in view(bench.node, later_us).alarms}


def test_acquiring_that_never_ends_is_given_up_to_the_next_in_line() -> None:
    """RELIABILITY 32: the result of adding the addresses does not come."""
    bench = Bench().after_hold_down()
    bench.obeys = False
    bench.keep_hearing(125, (1, STANDBY))
    claim = bench.service.promise
    bench.hear(1, entry(claim))
    assert bench.stands_in(State.ACQUIRING)
    for _ in range(32):
        bench.hear(1, entry(claim, lease_seq=bench.node.seq))
        bench.pass_ms(10)
    assert "T303" in bench.rows
    assert "not up after 300 ms" in next(s.text for s in bench.said if s.row == "T303")


odd_entries = [
    entry(Identity(epoch, node, nonce), State.STANDBY)
    for epoch, node, nonce in itertools.product((-HUGE, 0, 1, HUGE * 2 - 1), (-1, 1, 2), (0, -HUGE))
]


@pytest.mark.parametrize("state", [-HUGE, -1, 7, 99, 2 * HUGE - 1, *[int(s) for s in State]])
@pytest.mark.parametrize("owning", [False, True])
def test_odd_words_of_a_peer_never_raise(state: int, owning: bool) -> None:
    """S11: what wire lets through (indices are checked there, magnitudes are not)."""
    bench = Bench()
    if owning:
        bench.own()
    else:
        bench.after_hold_down()
    for word in odd_entries:
        odd = msgspec.structs.replace(
            word, state=state, lease_seq=-HUGE, calls=2 * HUGE - 1, held=-HUGE
        )
        bench.hear(
            1,
            odd,
            health=-HUGE,
            load=2 * HUGE - 1,
            calls=-HUGE,
            flags=2 * HUGE - 1,
            number=-HUGE,
            rank_hash=-1,
            releases=(Release(0, NOBODY, -1), Release(0, odd.promise, 2)),
        )
        bench.pass_ms(30)
        msgspec.msgpack.encode(view(bench.node, bench.now_us))
        roundtrip(bench.node)
    assert all("n-1" not in said.text for said in bench.said)


def test_deadline_is_never_further_than_a_beat() -> None:
    bench = owner_bench()
    for _ in range(200):
        assert next_deadline_us(bench.node) <= bench.now_us + 27_500
        bench.pass_ms(7)


def test_no_busy_turning() -> None:
    """A Tick that is taken moves the next deadline on (two in a row may be due at once)."""
    bench = owner_bench()
    for _ in range(500):
        bench.now_us = max(bench.now_us, next_deadline_us(bench.node))
        ticks = 0
        while next_deadline_us(bench.node) <= bench.now_us:
            bench.give(inp.Tick())
            ticks += 1
            assert ticks < 4


def test_recover_names_the_lost_owner_and_the_times() -> None:
    bench = Bench().after_hold_down()
    owner = Identity(3, 1, 7)
    bench.keep_hearing(200, (1, entry(owner, State.OWNED)), (2, STANDBY))
    bench.keep_hearing(180, (2, entry(owner)))
    bench.obeys = False
    bench.hear(2, entry(bench.service.promise))
    added_us = bench.service.times["granted"] + 700  # the kernel took its time
    bench.give(inp.AddressesAdded(0, True, at_us=added_us))
    (recover,) = kinds(bench.asked, Recover)
    assert recover.from_node == 1
    names = ("last_heartbeat", "dead", "claimed", "granted", "address_up")
    times = [recover.times[name] for name in names]
    assert times == sorted(times)
    assert times[-1] == added_us
    assert times[1] - times[0] >= 100_000


def roundtrip(node: Node) -> Node:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(node), type=Node)


def test_upgrade_hands_the_whole_state_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster whose nodes are handed over before every single step says the same (DESIGN 3)."""

    def handed_over(node: Node, event: inp.Input, now_us: int) -> object:
        fresh, actions = step(roundtrip(node), event, now_us)
        for field in node.__struct_fields__:
            setattr(node, field, getattr(fresh, field))
        return node, actions

    def story() -> list[str]:
        player = Player()
        said = player.play(["cluster masters=2 slaves=2", "boot all", "run 800ms"])
        said += player.play(["freeze n0 120ms", "run 500ms", "switchover s1 n3", "run 500ms"])
        return said + player.play(["kill n0", "run 500ms"])

    plain = story()
    monkeypatch.setattr(sim_host, "step", handed_over)
    assert story() == plain
    assert any("T301" in line for line in plain)


def test_flags_tell_the_hold_down() -> None:
    bench = Bench()
    bench.pass_ms(30)
    flags = kinds(bench.asked, SendBeat)[-1].beats[0].flags
    assert flags & Flag.STARTING
    bench.forget()
    bench.pass_ms(300)
    assert not kinds(bench.asked, SendBeat)[-1].beats[0].flags & Flag.STARTING


def test_every_decision_says_a_sentence() -> None:
    bench = owner_bench()
    bench.give(inp.FreeswitchExited("was killed"))
    for said in kinds(bench.asked, Decided):
        assert said.text.split()[0] in {"n0", "n1", "n2", "FreeSWITCH", "link"}, said


def test_an_epoch_that_was_owned_is_not_claimed_again_after_a_restart() -> None:
    """DESIGN 6, Claim: above the highest epoch that is known as promised or owned."""
    bench = Bench()
    bench.give(inp.Restored((Identity(4, 1, 9),), (7,)))
    bench.after_hold_down()
    bench.keep_hearing(400, (1, STANDBY), (2, STANDBY))
    assert next(d.epoch for d in bench.said if d.row == "T101") == 8

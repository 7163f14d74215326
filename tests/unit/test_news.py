"""What is told outside of the cluster, and by whom: no blink, nothing twice, nothing lost."""

from __future__ import annotations

from typing import Any

import msgspec

from haclusterd.agent import news, schema, status
from haclusterd.agent.news import CLUSTER, NODE, News, Watcher
from haclusterd.agent.reports import Reports
from haclusterd.agent.telling import PENDING_MAX, RECENT_S, STEP_S, Telling, place_of
from haclusterd.core.view import AlarmView, LinkView, View
from tests.fixtures.agent_parts import view

BEFORE = {"east": ("fs-a", 7), "west": ("fs-b", 3)}


def seen(word: View) -> schema.Status:
    return status.status(word, schema.Sync("in-sync", 0), {})


def with_node(word: View, number: int, **changed: Any) -> View:
    nodes = list(word.nodes)
    nodes[number] = msgspec.structs.replace(nodes[number], **changed)
    return msgspec.structs.replace(word, nodes=tuple(nodes))


def told(*words: tuple[float, View]) -> list[tuple[str, str]]:
    """(event, text) of all news when a node sees these views at these times."""
    watcher = Watcher()
    return [
        (one.event, one.text)
        for at, word in words
        for one in watcher.look(seen(word), at)
    ]  # fmt: skip


def test_the_first_look_tells_nothing() -> None:
    assert told((0.0, view(BEFORE)), (9.0, view(BEFORE))) == []


def test_a_takeover_is_told_at_once_and_once() -> None:
    after = with_node(view({"east": ("fs-c", 8), "west": ("fs-b", 3)}), 0, role="dead", rank=-1)
    found = told((0.0, view(BEFORE)), (1.0, after), (1.2, after), (9.0, after))
    assert found[:2] == [
        ("service_owned", "east is served by fs-c at epoch 8, was on fs-a"),
        ("node_role", "fs-a is dead, was master"),
    ]
    assert len([event for event, _ in found if event == "service_owned"]) == 1


def test_a_service_that_is_back_within_a_second_was_never_gone() -> None:
    gone = view({"west": ("fs-b", 3)})
    assert ("service_unserved", "nobody serves east, was on fs-a") in told(
        (0.0, view(BEFORE)), (1.0, gone), (2.1, gone)
    )
    found = told((0.0, view(BEFORE)), (1.0, gone), (1.9, gone), (2.0, view(BEFORE)))
    assert found == []


def test_a_reclaim_says_that_it_stays() -> None:
    after = view({"east": ("fs-a", 8), "west": ("fs-b", 3)})
    assert told((0.0, view(BEFORE)), (1.0, after)) == [
        ("service_owned", "east stays on fs-a at epoch 8")
    ]


def test_alarms_are_raised_and_cleared_but_blinks_are_not() -> None:
    alarm = AlarmView("single_link", "one link left to fs-b")
    raised = view(BEFORE, alarms=(alarm,))
    assert told((0.0, view(BEFORE)), (1.0, raised), (1.5, view(BEFORE)), (9.0, view(BEFORE))) == []
    found = told((0.0, view(BEFORE)), (1.0, raised), (2.0, raised), (3.0, view(BEFORE)),
                 (4.0, view(BEFORE)))  # fmt: skip
    assert found == [
        ("alarm_raised", "one link left to fs-b"),
        ("alarm_cleared", "over: one link left to fs-b"),
    ]


def paused(left_s: int) -> View:
    text = f"paused by root on fs-a: nothing moves by itself ({left_s // 60}m{left_s % 60}s left)"
    return view(BEFORE, alarms=(AlarmView("paused", text), AlarmView("single_link", "to 10.1.0.2")))


def test_an_alarm_that_counts_down_is_told_once_and_leaves_nothing_behind() -> None:
    """Its text changes every second: that is not an alarm of its own each time."""
    watcher = Watcher()
    watcher.look(seen(view(BEFORE)), 0.0)
    found = [
        (one.event, one.text)
        for tick in range(1, 3001)
        for one in watcher.look(seen(paused(1800 - tick // 5)), tick / 5)
    ]
    assert sorted(found) == [
        ("alarm_raised", "paused by root on fs-a: nothing moves by itself (29m59s left)"),
        ("alarm_raised", "to 10.1.0.2"),
    ]
    assert len(watcher._since) == 0
    over = [*watcher.look(seen(view(BEFORE)), 601.0), *watcher.look(seen(view(BEFORE)), 602.0)]
    assert sorted(one.text for one in over) == [
        "over: paused by root on fs-a: nothing moves by itself (29m59s left)",
        "over: to 10.1.0.2",
    ]


def test_a_blink_leaves_nothing_behind() -> None:
    watcher = Watcher()
    for n in range(100):
        blink = AlarmView("single_link", f"one link left to fs-{n}")
        watcher.look(seen(view(BEFORE, alarms=(blink,) if n else ())), n / 10)
    watcher.look(seen(view(BEFORE)), 11.0)
    assert not watcher._since


def test_alarms_that_differ_in_names_only_are_two() -> None:
    both = tuple(AlarmView("maintenance", f"{n} is in maintenance") for n in ("1", "2"))
    found = told((0.0, view(BEFORE)), (1.0, view(BEFORE, alarms=both)),
                 (2.0, view(BEFORE, alarms=both)))  # fmt: skip
    assert [text for _, text in found] == ["1 is in maintenance", "2 is in maintenance"]


def test_a_node_whose_name_is_a_number_is_not_taken_for_another_one() -> None:
    nodes = with_node(with_node(view(BEFORE), 1, id="1"), 2, id="2")
    both = tuple(AlarmView("maintenance", f"{n} is in maintenance") for n in ("1", "2"))
    word = msgspec.structs.replace(nodes, alarms=both)
    after = msgspec.structs.replace(nodes, alarms=both[1:])
    found = told((0.0, nodes), (1.0, word), (2.0, word), (3.0, after), (4.0, after))
    assert found[-1] == ("alarm_cleared", "over: 1 is in maintenance")


def test_alarms_of_a_start_are_told_but_not_again_after_an_upgrade() -> None:
    alarm = AlarmView("unprotected", "the agent of fs-a is not running")
    starting = with_node(view(BEFORE, alarms=(alarm,)), 0, role="starting")
    assert ("alarm_raised", alarm.text) in told((0.0, starting), (0.1, starting), (1.5, starting))
    upgraded = view(BEFORE, alarms=(alarm,))
    assert told((0.0, upgraded), (0.1, upgraded), (1.5, upgraded)) == []


def test_links_quorum_and_the_first_in_line() -> None:
    fewer = (LinkView("10.1.0.1", True, 400, 0), LinkView("10.2.0.1", False, 0, 0))
    cut = with_node(view(BEFORE), 1, links=fewer)
    assert told((0.0, view(BEFORE)), (1.0, cut), (2.0, cut)) == [
        ("link_down", "link 2 between fs-a and fs-b is down")
    ]
    dead = with_node(cut, 1, role="dead")
    events = [event for event, _ in told((0.0, view(BEFORE)), (1.0, dead), (2.0, dead))]
    assert "link_down" not in events, "a lost node says enough"
    minority = view(BEFORE, quorate=False, reachable=1)
    assert told((0.0, view(BEFORE)), (1.0, minority)) == [
        ("quorum_lost", "fs-a reaches 1 of 3 voters")
    ]
    nobody = with_node(view(BEFORE), 2, rank=-1, role="maintenance")
    found = told((0.0, view(BEFORE)), (1.0, nobody), (2.0, nobody))
    assert ("primary_slave", "nobody is the first in line") in found


def test_both_ends_of_a_link_have_the_same_news() -> None:
    here = msgspec.structs.replace(view(BEFORE), node="fs-b")
    keys = set()
    for me, word in ((0, view(BEFORE)), (1, here)):
        watcher = Watcher()
        watcher.look(seen(word), 0.0)
        fewer = (LinkView("10.1.0.1", True, 400, 0), LinkView("10.2.0.1", False, 0, 0))
        cut = with_node(word, 1 - me, links=fewer)
        watcher.look(seen(cut), 1.0)
        keys |= {one.key for one in watcher.look(seen(cut), 2.0)}
    assert keys == {"link/fs-a/fs-b/2/False"}


def test_news_is_json_with_the_keys_of_the_document() -> None:
    after = view({"east": ("fs-c", 8), "west": ("fs-b", 3)})
    watcher = Watcher()
    watcher.look(seen(view(BEFORE)), 0.0)
    one = watcher.look(seen(after), 1.0)[0]
    assert msgspec.to_builtins(one) == {
        "key": "service/east/8/fs-c", "event": "service_owned", "scope": "cluster",
        "text": "east is served by fs-c at epoch 8, was on fs-a", "service": "east",
        "node": "fs-c", "from": "fs-a", "to": "fs-c", "epoch": 8,
    }  # fmt: skip


# -- who tells --

ONE = News("service/east/8/fs-c", "service_owned", CLUSTER, "x")


def test_the_first_living_node_tells_and_the_others_drop_theirs() -> None:
    nodes = [Telling() for _ in range(3)]
    assert [t.saw(ONE, place, 10.0) for place, t in enumerate(nodes)] == [True, False, False]
    for other in nodes[1:]:
        other.told([ONE.key], 10.1)
    assert [t.due(99.0) for t in nodes] == [[], [], []]


def test_news_that_was_told_before_it_was_seen_is_not_told_again() -> None:
    late = Telling()
    late.told([ONE.key], 10.0)
    assert not late.saw(ONE, 1, 10.0 + RECENT_S - 1)
    assert late.due(99.0) == []
    late.saw(ONE, 1, 10.0 + RECENT_S + 1)
    assert late.due(99.0) == [ONE], "the same thing a while later is another event"


def test_if_the_first_is_silent_the_next_one_tells_after_a_while() -> None:
    second, third = Telling(), Telling()
    second.saw(ONE, 1, 10.0)
    third.saw(ONE, 2, 10.0)
    assert second.due(10.0 + STEP_S - 0.1) == []
    assert second.due(10.0 + STEP_S) == [ONE]
    third.told([ONE.key], 10.0 + STEP_S + 0.01)
    assert third.due(99.0) == []


def test_each_node_tells_its_own_news_and_a_minority_no_others() -> None:
    own = msgspec.structs.replace(ONE, scope=NODE)
    lonely = Telling()
    assert lonely.saw(own, None, 1.0)
    assert not lonely.saw(ONE, None, 1.0)
    assert lonely.due(99.0) == []


def test_waiting_news_is_bounded() -> None:
    waiting = Telling()
    for n in range(PENDING_MAX + 10):
        waiting.saw(msgspec.structs.replace(ONE, key=str(n)), 1, 1.0)
    kept = waiting.due(99.0)
    assert (len(kept), kept[-1].key) == (PENDING_MAX, str(PENDING_MAX + 9))


def test_places() -> None:
    assert place_of(seen(view(BEFORE))) == 0
    assert place_of(seen(view(BEFORE, me="fs-c"))) == 2
    assert place_of(seen(with_node(view(BEFORE, me="fs-c"), 0, role="dead"))) == 1
    assert place_of(seen(view(BEFORE, quorate=False))) is None


def test_a_report_is_news_with_its_timeline() -> None:
    report = schema.Report(
        number=4, at="2026-11-22T18:00:00.000Z", service="east", from_="fs-a", to="fs-c", epoch=8,
        cause="silent", timeline=[schema.Moment(0.0, "dead")], outage_ms=152.6,
        calls=schema.Calls(30, 29, 0, 1, []),
    )  # fmt: skip
    one = news.of_report(report)
    assert one.scope == NODE, "only the new owner has it"
    assert "29 of 30 call legs recovered, 0 partly, 1 lost" in one.text
    assert msgspec.to_builtins(one)["report"]["timeline"] == [{"at_ms": 0.0, "event": "dead"}]
    assert Reports(None).all() == []
